//! What the guest receives.
//!
//! ```text
//! steer -> take -> post -> fit -> copy_out -> respond
//! ```
//!
//! A round takes what the port had through all stages as far as the guest posted pages: one copy into
//! them, one publication.

pub mod steer;
pub mod take;
pub mod post;
pub mod fit;
pub mod copy_out;
pub mod respond;

use std::collections::VecDeque;

use hypervisor::PeerFault;
use hypervisor::memory::{Memory, Using};
use ring::{Notify, Recheck};

use crate::buffer::{Buffer, Pool};
use crate::connect::Features;
use crate::queue::{Around, Serving};
use crate::stats::{Loss, Stats};
use fit::Page;
use post::Post;
use take::{Take, Waiting};

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

/// One queue's receiving.
#[derive(Debug)]
pub struct Rx<M> {
    take: Take,
    post: Post<M>,
    rx_notify: bool,
    /// Those that have pages, each with how many of `pages` are its own.
    going: VecDeque<(Waiting, usize)>,
    pages: Vec<Page>,
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

impl<M: Memory> Rx<M> {
    /// Gives what comes to a guest with these features.
    #[must_use]
    pub fn new(post: Post<M>, features: Features, bounds: &Bounds) -> Self {
        Self {
            take: Take::new(features, bounds.packets),
            post,
            rx_notify: features.rx_notify,
            going: VecDeque::with_capacity(BATCH),
            pages: Vec::new(),
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

    /// Takes what `arrived` through all stages, as far as the guest has pages.
    #[inline]
    pub fn round<U: Using>(
        &mut self,
        around: &Around<'_, U>,
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
        let fault = self.give(around, now).err();
        let notify = if self.pages.is_empty() {
            None
        } else {
            worked = true;
            let peer = self.post.peer();
            let (packets, pages) = (self.going.iter_mut(), self.pages.as_mut_slice());
            stats.rx_slots.add(pages.len() as u64);
            copy_out::copy_out(around.domain, peer, around.kept, packets, pages, stats);
            let counts = self.going.iter().map(|(_, count)| *count);
            let notify = respond::respond(counts, &mut self.pages, &mut self.post);
            for (waiting, _) in self.going.drain(..) {
                respond::given(waiting, pool, stats);
            }
            Some(notify)
        };
        let patience = if self.rx_notify { serving.rx.stall_ns } else { u64::MAX };
        let stalled = self.post.stall(patience, now);
        self.expire(serving, pool, stats, now);
        stats.rx_waiting.set(self.take.len() as u64);
        Round { worked, notify, stalled, fault }
    }

    /// Gives pages to as many packets as have room and credit.
    #[inline]
    fn give<U: Using>(&mut self, around: &Around<'_, U>, now: u64) -> Result<(), PeerFault> {
        while self.going.len() < BATCH {
            let Some(first) = self.take.first() else {
                // What waited may be lost by now, while the guest still counts as stalled.
                return self.post.look_again(now);
            };
            if !self.post.has(first.fit.slots(), now)? {
                if !std::mem::replace(&mut self.starved, true) {
                    around.stats.rx_starved.add(1);
                }
                return Ok(());
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
            let count = fit::fit(first, &mut self.post, &mut self.pages)?;
            if let Some(waiting) = self.take.pop() {
                self.going.push_back((waiting, count));
            }
        }
        Ok(())
    }

    /// Loses what has waited for pages too long.
    fn expire(&mut self, serving: &Serving, pool: &mut Pool, stats: &Stats, now: u64) {
        if self.post.starved_since().is_none() {
            return;
        }
        let wait = if self.post.is_stalled() { 0 } else { serving.rx.wait_ns };
        while let Some(first) = self.take.first() {
            if now.saturating_sub(first.since) < wait {
                return;
            }
            if let Some(waiting) = self.take.pop() {
                stats.lose(Loss::NotPosted, 1);
                pool.put(waiting.buffer);
            }
        }
        if !self.post.is_stalled() {
            self.post.want_none();
        }
    }

    /// Before sleeping: where packets wait for pages, asks to be notified of such.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    pub fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        if self.until.is_some() { Ok(Recheck::Quiet) } else { self.post.rearm() }
    }

    /// Whether packets wait, for pages or for time.
    #[inline]
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.until.is_some() || self.post.starved_since().is_some()
    }

    /// When to look again, in nanoseconds, where time is what packets wait for.
    #[must_use]
    pub fn until(&self, serving: &Serving, now: u64) -> Option<u64> {
        if self.until.is_some() {
            return self.until;
        }
        let since = self.post.starved_since()?;
        if !self.rx_notify {
            return Some(now.saturating_add(LOOK_NS));
        }
        let expires = self.take.first().map(|first| first.since.saturating_add(serving.rx.wait_ns));
        let stalls = since.saturating_add(serving.rx.stall_ns);
        let stalls = (!self.post.is_stalled()).then_some(stalls);
        expires.into_iter().chain(stalls).min()
    }

    /// Gives up what waits.
    pub fn clear(&mut self, pool: &mut Pool) {
        while let Some(waiting) = self.take.pop() {
            pool.put(waiting.buffer);
        }
    }
}

impl<M> Drop for Rx<M> {
    fn drop(&mut self) {
        // With the ring; the guest's next backend finds them there.
        self.pages.drain(..).for_each(|page| page.owed.abandon());
    }
}
