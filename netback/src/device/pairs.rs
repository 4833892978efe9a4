//! The pairs of queues of a virtual machine's interface, each served by one thread once both its queues are there.
//!
//! A monitor starts and stops queues one by one; what it said of each is kept here meanwhile. A pair runs while both
//! are started and the driver uses it: where the control queue is ours, it says how many it uses, and else the
//! monitor starts those only.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::backend::Waker;
use hypervisor::event::Channel as _;
use hypervisor::vhost_user::Parts;
use hypervisor::{Error, HostError};

use crate::connect::Channels;
use crate::connect::vhost_user::offloads;
use crate::device::queues::reason;
use crate::device::vif::Vif;
use crate::queue::{self, Ends, Handle, Serving};
use crate::rx::virtio::Receiving;
use crate::stats::Stats;
use crate::tx::virtio::Sending;
use crate::virtqueue::Virtqueue;

/// Which queue of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Rx,
    Tx,
}

/// A queue that the monitor has started.
#[derive(Debug)]
struct Half {
    parts: Parts,
    /// How many chains of it are dealt with.
    position: Arc<AtomicU16>,
}

/// Two queues, and the thread that serves them.
#[derive(Debug, Default)]
struct Pair {
    rx: Option<Half>,
    tx: Option<Half>,
    running: Option<Running>,
    /// Why the thread has ended by itself.
    broken: Arc<Mutex<Option<Error>>>,
}

#[derive(Debug)]
struct Running {
    handle: Handle,
    stats: Arc<Stats>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Pairs {
    vif: Arc<Vif>,
    all: Vec<Pair>,
    /// How many the driver uses, where it is us whom it tells.
    used: Option<u16>,
    /// What they share, while any runs.
    serving: Option<Arc<Serving>>,
    /// Woken when one ends by itself.
    waker: Waker,
}

impl Pairs {
    pub(super) fn new(vif: Arc<Vif>, many: u16, waker: Waker) -> Self {
        let all = (0..many).map(|_| Pair::default()).collect();
        Self { vif, all, used: None, serving: None, waker }
    }

    /// How many there can be.
    pub(super) fn many(&self) -> u16 {
        u16::try_from(self.all.len()).unwrap_or(u16::MAX)
    }

    /// Takes a queue that was started, and serves its pair if that is all of it.
    ///
    /// # Errors
    ///
    /// There cannot be such a queue, or the host cannot serve it. It is not taken then.
    pub(super) fn put(&mut self, number: u16, side: Side, parts: Parts) -> Result<(), Error> {
        let Some(pair) = self.all.get_mut(usize::from(number)) else { return Ok(()) };
        let position = Arc::new(AtomicU16::new(parts.taken));
        *pair.half(side) = Some(Half { parts, position });
        let started = self.settle(number);
        if started.is_err()
            && let Some(pair) = self.all.get_mut(usize::from(number))
        {
            *pair.half(side) = None;
        }
        started
    }

    /// Gives a queue up. Says how many chains of it are dealt with.
    pub(super) fn take(&mut self, number: u16, side: Side) -> u16 {
        self.halt(number);
        let Some(pair) = self.all.get_mut(usize::from(number)) else { return 0 };
        let half = pair.half(side).take();
        half.map_or(0, |half| half.position.load(Ordering::Acquire))
    }

    /// The driver uses so many pairs; with `None`, all that the monitor starts.
    ///
    /// # Errors
    ///
    /// The host cannot serve one of them.
    pub(super) fn set_used(&mut self, used: Option<u16>) -> Result<(), Error> {
        self.used = used;
        for number in 0..self.many() {
            if self.uses(number) {
                self.settle(number)?;
            } else {
                self.halt(number);
            }
        }
        Ok(())
    }

    /// Why a pair has ended by itself, if it has.
    pub(super) fn failed(&self, number: u16) -> Option<Error> {
        let pair = self.all.get(usize::from(number))?;
        pair.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes a pair look at limits that were changed.
    pub(super) fn wake(&self, number: u16) {
        let pair = self.all.get(usize::from(number));
        if let Some(running) = pair.and_then(|pair| pair.running.as_ref()) {
            running.handle.wake();
        }
    }

    fn uses(&self, number: u16) -> bool {
        self.used.is_none_or(|used| number < used)
    }

    /// Serves a pair that is whole, used, and not served yet.
    fn settle(&mut self, number: u16) -> Result<(), Error> {
        let (used, many) = (self.uses(number), self.many());
        let Some(pair) = self.all.get_mut(usize::from(number)) else { return Ok(()) };
        let (Some(rx), Some(tx), None, true) = (&pair.rx, &pair.tx, &pair.running, used) else {
            return Ok(());
        };
        let Some(open) = self.vif.uplink() else {
            return Err(HostError::new("serve an interface without an uplink", libc::ENODEV).into());
        };
        let features = rx.parts.features;
        let ends = Ends {
            source: Sending::new(attach(tx)?, features),
            sink: Receiving::new(attach(rx)?, features),
            tells: true,
            channels: Channels::Split { tx: tx.parts.bell.clone(), rx: rx.parts.bell.clone() },
        };
        let port = open.port(number, &offloads(features))?;
        let first = self.serving.is_none();
        let serving = self.serving.get_or_insert_with(|| {
            let serving = Arc::new(self.vif.new_serving(many));
            self.vif.standing.lock().serve(&serving);
            serving
        });
        // Whoever published last may have been killed before it said so.
        ends.channels.all().try_for_each(|bell| bell.notify())?;
        let stats = Arc::new(Stats::default());
        *pair.broken.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let (broken, waker) = (Arc::clone(&pair.broken), self.waker.clone());
        let about = queue::About {
            name: format!("queue-{number}"),
            number,
            serving: Arc::clone(serving),
            stats: Arc::clone(&stats),
        };
        let handle = queue::spawn_ends(about, ends, port, move |ended| {
            if let Some(error) = reason(ended) {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                waker.wake();
            }
        })?;
        self.vif.standing.lock().now.push(Arc::clone(&stats));
        if first {
            open.set_carrier(true);
            self.vif.announce();
        }
        pair.running = Some(Running { handle, stats });
        Ok(())
    }

    /// Ends the thread of a pair.
    fn halt(&mut self, number: u16) {
        let Some(pair) = self.all.get_mut(usize::from(number)) else { return };
        let Some(Running { handle, stats }) = pair.running.take() else { return };
        let last = self.all.iter().all(|pair| pair.running.is_none());
        if last && let Some(open) = self.vif.uplink() {
            open.set_carrier(false);
        }
        handle.stop();
        // How it ended was told by itself.
        let _ = handle.join();
        let mut standing = self.vif.standing.lock();
        standing.count_no_more(&stats);
        if last {
            self.serving = None;
            standing.serve_no_more();
        }
    }
}

impl Pair {
    const fn half(&mut self, side: Side) -> &mut Option<Half> {
        match side {
            Side::Rx => &mut self.rx,
            Side::Tx => &mut self.tx,
        }
    }
}

fn attach(half: &Half) -> Result<Virtqueue, Error> {
    Ok(Virtqueue::attach(&half.parts, Arc::clone(&half.position))?)
}
