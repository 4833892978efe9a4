//! What the guest receives.
//!
//! ```text
//! steer -> take -> post -> fit -> copy_out -> respond
//! ```
//!
//! A round takes what the port had through all stages as far as the guest made room: one copy into its memory, one
//! publication. A [`Sink`] is what a transport has of it: what the guest takes, its room, and copying into that.
//! Xen's is in [`xen`], and its stages are `post`, `fit`, `copy_out` and `respond`; a virtqueue's is in [`virtio`].

pub mod steer;
pub mod take;
pub mod post;
pub mod fit;
pub mod copy_out;
pub mod respond;
pub mod patience;
pub mod virtio;
pub mod xen;

use std::collections::VecDeque;

use hypervisor::PeerFault;
use ring::{Notify, Recheck};

use crate::buffer::{Buffer, Pool};
use crate::queue::{Around, Serving};
use crate::stats::{Loss, Stats};
use patience::Patience;
use take::{Shape, Take, Waiting};

/// Packets that are given to the guest in one round at most.
pub const BATCH: usize = 128;

/// How often a guest is looked at that needs pages and does not tell when it posts some.
const LOOK_NS: u64 = 1_000_000;

/// How much may wait for a guest, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Packets.
    pub packets: usize,
    /// Bytes, after which nothing more is asked for. What is on its way then still comes.
    pub bytes: usize,
    /// How long a packet waits for pages before it is lost, in nanoseconds.
    pub wait_ns: u64,
    /// How long a guest may have packets wait before its link is taken down, in nanoseconds.
    pub stall_ns: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        let (wait_ns, stall_ns) = (10_000_000_000, 60_000_000_000);
        Self { packets: 256, bytes: 1 << 20, wait_ns, stall_ns }
    }
}

/// Where the guest's packets go. It is given them in the order in which it made room for them.
pub trait Sink {
    /// What the guest takes.
    type Shape: Shape;

    /// What that is.
    fn shape(&self) -> Self::Shape;

    /// Whether there is room for a packet that is to lie so.
    ///
    /// # Errors
    ///
    /// The guest broke a rule of the transport.
    fn has(&mut self, fit: &FitOf<Self>) -> Result<Room, PeerFault>;

    /// Takes the room of a packet for which there is.
    ///
    /// # Errors
    ///
    /// The guest broke a rule of the transport.
    fn place(&mut self, fit: &FitOf<Self>) -> Result<(), PeerFault>;

    /// Copies packets, all that have room, into it. Says how many of the guest's slots they take.
    fn copy_out(&mut self, going: &mut VecDeque<Waiting<FitOf<Self>>>, stats: &Stats) -> usize;

    /// Shows the guest every packet that has room, and says whether it wants to be notified.
    fn publish(&mut self) -> Notify;

    /// Before sleeping: asks to be notified when there is room for such a packet, and looks once more.
    ///
    /// # Errors
    ///
    /// The guest broke a rule of the transport.
    fn rearm(&mut self, fit: &FitOf<Self>) -> Result<Recheck, PeerFault>;
}

/// How a packet lies in the memory of a guest behind `K`.
pub type FitOf<K> = <<K as Sink>::Shape as Shape>::Fit;

/// Whether a guest has room for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It has.
    There,
    /// Not yet.
    Short,
    /// What it made room of is smaller than the packet, and nothing else will be used first.
    Never,
}

/// One queue's receiving.
#[derive(Debug)]
pub struct Rx<K: Sink> {
    take: Take<K::Shape>,
    sink: K,
    /// The guest tells when it makes room.
    tells: bool,
    /// Those that have room.
    going: VecDeque<Waiting<FitOf<K>>>,
    patience: Patience<FitOf<K>>,
    /// When the first is worth another try, where the rate is what it waits for.
    until: Option<u64>,
    starved: bool,
}

/// What a round did.
#[derive(Debug, Default)]
pub struct Round {
    /// Whether there was something to do.
    pub worked: bool,
    /// Whether the guest wants to be notified.
    pub notify: Option<Notify>,
    /// Whether its link is to be up, where that changed.
    pub stalled: Option<bool>,
    /// What the guest did wrong.
    pub fault: Option<PeerFault>,
}

impl<K: Sink> Rx<K> {
    /// Gives what comes to `sink`, whose guest `tells` when it makes room, or does not.
    #[must_use]
    pub fn new(sink: K, tells: bool, bounds: &Bounds) -> Self {
        Self {
            take: Take::new(sink.shape(), bounds.packets),
            sink,
            tells,
            going: VecDeque::with_capacity(BATCH),
            patience: Patience::default(),
            until: None,
            starved: false,
        }
    }

    /// How many packets to ask the port for.
    #[inline]
    #[must_use]
    pub fn room(&self, serving: &Serving, pool: &Pool) -> usize {
        self.take.room(serving, pool)
    }

    /// Takes what `arrived` through all stages, as far as the guest has room.
    #[inline]
    pub fn round(
        &mut self,
        around: &Around<'_>,
        arrived: &mut VecDeque<Buffer>,
        pool: &mut Pool,
    ) -> Round {
        let Around { serving, stats, .. } = *around;
        let mut worked = !arrived.is_empty();
        if !worked && self.take.is_empty() && !self.waits() {
            return Round::default();
        }
        let now = around.now();
        for buffer in arrived.drain(..) {
            self.take.push(buffer, serving, pool, stats, now);
        }
        let fault = self.give(around, pool, now).err();
        let notify = if self.going.is_empty() {
            None
        } else {
            worked = true;
            let slots = self.sink.copy_out(&mut self.going, stats);
            stats.rx_slots.add(slots as u64);
            let notify = self.sink.publish();
            for waiting in self.going.drain(..) {
                respond::given(waiting, pool, stats);
            }
            Some(notify)
        };
        let patience = if self.tells { serving.rx.stall_ns } else { u64::MAX };
        let stalled = self.patience.stall(patience, now);
        self.expire(serving, pool, stats, now);
        stats.rx_waiting.set(self.take.len() as u64);
        Round { worked, notify, stalled, fault }
    }

    /// Gives room to as many packets as there is room and credit for.
    #[inline]
    fn give(&mut self, around: &Around<'_>, pool: &mut Pool, now: u64) -> Result<(), PeerFault> {
        while self.going.len() < BATCH {
            let Some(first) = self.take.first() else {
                // What waited may be lost by now, while the guest still counts as stalled.
                if let Some(wanted) = self.patience.wanted()
                    && self.sink.has(&wanted)? != Room::Short
                {
                    self.patience.rest();
                }
                return Ok(());
            };
            match self.sink.has(&first.fit)? {
                Room::There => self.patience.rest(),
                Room::Short => {
                    self.patience.starve(first.fit, now);
                    if !std::mem::replace(&mut self.starved, true) {
                        around.stats.rx_starved.add(1);
                    }
                    return Ok(());
                }
                Room::Never => {
                    self.patience.rest();
                    if let Some(waiting) = self.take.pop() {
                        around.stats.lose(Loss::Unfit, 1);
                        pool.put(waiting.buffer);
                    }
                    continue;
                }
            }
            self.starved = false;
            let credit = &around.serving.limits.rx;
            if let Err(until) = credit.admit(first.buffer.len(), now) {
                if self.until.replace(until).is_none() {
                    around.stats.rx_held.add(1);
                }
                return Ok(());
            }
            self.until = None;
            self.sink.place(&first.fit)?;
            if let Some(waiting) = self.take.pop() {
                self.going.push_back(waiting);
            }
        }
        Ok(())
    }

    /// Loses what has waited for room too long.
    fn expire(&mut self, serving: &Serving, pool: &mut Pool, stats: &Stats, now: u64) {
        if self.patience.since().is_none() {
            return;
        }
        let wait = if self.patience.is_stalled() { 0 } else { serving.rx.wait_ns };
        while let Some(first) = self.take.first() {
            if now.saturating_sub(first.since) < wait {
                return;
            }
            if let Some(waiting) = self.take.pop() {
                stats.lose(Loss::NotPosted, 1);
                pool.put(waiting.buffer);
            }
        }
        if !self.patience.is_stalled() {
            self.patience.rest();
        }
    }

    /// Before sleeping: where packets wait for room, asks to be notified of such.
    ///
    /// # Errors
    ///
    /// The guest broke a rule of the transport.
    pub fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        match self.patience.wanted() {
            Some(wanted) if self.until.is_none() => self.sink.rearm(&wanted),
            _ => Ok(Recheck::Quiet),
        }
    }

    /// Whether packets wait, for room or for time.
    #[inline]
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.until.is_some() || self.patience.since().is_some()
    }

    /// When to look again, in nanoseconds, where time is what packets wait for.
    #[must_use]
    pub fn until(&self, serving: &Serving, now: u64) -> Option<u64> {
        if self.until.is_some() {
            return self.until;
        }
        let since = self.patience.since()?;
        if !self.tells {
            return Some(now.saturating_add(LOOK_NS));
        }
        let expires = self.take.first().map(|first| first.since.saturating_add(serving.rx.wait_ns));
        let stalls = since.saturating_add(serving.rx.stall_ns);
        let stalls = (!self.patience.is_stalled()).then_some(stalls);
        expires.into_iter().chain(stalls).min()
    }

    /// Gives up what waits.
    pub fn clear(&mut self, pool: &mut Pool) {
        while let Some(waiting) = self.take.pop() {
            pool.put(waiting.buffer);
        }
    }
}
