//! A network interface for a virtual machine that another process runs.
//!
//! Before: `hypervisor::vhost_user`, which says when queues start and stop. After: `pairs`, and for the control
//! queue `control_queue`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::backend::Waker;
use hypervisor::vhost_user::{self, NET_MTU, NET_SET_MTU, Parts, RARP, SEND_RARP};
use hypervisor::{Error, Peer, PeerFault};

use crate::connect::vhost_user::{MAX_PAIRS, Offer, control_queue};
use crate::device::control_queue::{self, Commands};
use crate::device::pairs::{Pairs, Side};
use crate::device::vif::Vif;
use crate::filter::Mac;

/// [`Vif`], as a virtual machine's device.
#[derive(Debug)]
pub struct MachineVif {
    vif: Arc<Vif>,
    offer: Offer,
    pairs: Arc<Mutex<Pairs>>,
    waker: Waker,
}

impl MachineVif {
    /// `vif`, whose uplink is [open](Vif::open), with up to `pairs` pairs of queues. `waker` is woken when a queue
    /// ends before it was told to.
    #[must_use]
    pub fn new(vif: Arc<Vif>, pairs: u16, waker: Waker) -> Self {
        let pairs = pairs.clamp(1, MAX_PAIRS);
        let uso = vif.uplink().is_some_and(|open| open.cuts_udp());
        let offer = Offer { pairs, mac: vif.policy().mac, mtu: vif.policy().mtu, uso };
        let pairs = Pairs::new(Arc::clone(&vif), pairs, waker.clone());
        Self { vif, offer, pairs: Arc::new(Mutex::new(pairs)), waker }
    }
}

fn lock(pairs: &Mutex<Pairs>) -> MutexGuard<'_, Pairs> {
    pairs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number that a message of these two kinds has.
fn number(payload: &[u8]) -> Result<u64, PeerFault> {
    let bytes = payload.first_chunk::<8>();
    let short = || PeerFault::new(Peer::Machine, "message_too_short", payload.len());
    bytes.map(|bytes| u64::from_ne_bytes(*bytes)).ok_or_else(short)
}

impl vhost_user::Device for MachineVif {
    type Queue = MachineQueue;

    fn features(&self) -> u64 {
        self.offer.features()
    }

    fn queues(&self) -> u16 {
        // And the control queue, for a monitor that has none of its own.
        self.offer.pairs.saturating_mul(2).saturating_add(1)
    }

    fn configuration(&self) -> Vec<u8> {
        self.offer.configuration(self.vif.is_up()).encode().to_vec()
    }

    fn protocol(&self) -> u64 {
        NET_MTU | RARP
    }

    fn told(&self, what: u32, payload: &[u8]) -> Result<bool, Error> {
        match what {
            NET_SET_MTU => self.vif.take_mtu(number(payload)?)?,
            SEND_RARP => {
                let [a, b, c, d, e, f, ..] = number(payload)?.to_ne_bytes();
                let mac: Mac = [a, b, c, d, e, f];
                self.vif.announce_as(mac);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn is_plugged(&self) -> bool {
        self.vif.is_up()
    }

    fn start(&self, parts: Parts) -> Result<MachineQueue, Error> {
        let (number, pairs) = (parts.number, Arc::clone(&self.pairs));
        if control_queue(parts.features, self.offer.pairs) == Some(number) {
            let commands = Commands::new(Arc::clone(&pairs));
            // Before the driver's first command, which may say otherwise.
            lock(&pairs).set_used(Some(1))?;
            let spawned = control_queue::spawn(&parts, commands, self.waker.clone());
            if spawned.is_err() {
                lock(&pairs).set_used(None)?;
            }
            return Ok(MachineQueue(Kind::Control { handle: Some(spawned?), pairs }));
        }
        let pair = number / 2;
        if pair >= self.offer.pairs {
            let value = format!("{number}, where the driver has no control queue");
            return Err(PeerFault::new(Peer::Machine, "queue_number", value).into());
        }
        let side = if number.is_multiple_of(2) { Side::Rx } else { Side::Tx };
        lock(&self.pairs).put(pair, side, parts)?;
        Ok(MachineQueue(Kind::Data { pair, side, pairs, there: true }))
    }
}

/// A queue of a virtual machine's. Dropping it ends it as stopping does.
#[derive(Debug)]
pub struct MachineQueue(Kind);

#[derive(Debug)]
enum Kind {
    Data { pair: u16, side: Side, pairs: Arc<Mutex<Pairs>>, there: bool },
    Control { handle: Option<control_queue::Handle>, pairs: Arc<Mutex<Pairs>> },
}

impl vhost_user::Queue for MachineQueue {
    fn stop(mut self) -> u16 {
        self.end()
    }

    fn failed(&mut self) -> Option<Error> {
        match &self.0 {
            Kind::Data { pair, pairs, .. } => lock(pairs).failed(*pair),
            Kind::Control { handle, .. } => handle.as_ref()?.failed(),
        }
    }

    fn wake(&self) {
        if let Kind::Data { pair, side: Side::Tx, pairs, .. } = &self.0 {
            lock(pairs).wake(*pair);
        }
    }
}

impl MachineQueue {
    fn end(&mut self) -> u16 {
        match &mut self.0 {
            Kind::Data { pair, side, pairs, there } => {
                if std::mem::take(there) {
                    lock(pairs).take(*pair, *side)
                } else {
                    0
                }
            }
            Kind::Control { handle, pairs } => {
                // Not while the pairs are locked, which it may be waiting for.
                let Some(handle) = handle.take() else { return 0 };
                let position = handle.end();
                if let Err(error) = lock(pairs).set_used(None) {
                    tracing::warn!("a pair of queues is not served: {error}");
                }
                position
            }
        }
    }
}

impl Drop for MachineQueue {
    fn drop(&mut self) {
        self.end();
    }
}
