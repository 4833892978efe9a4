//! What the medium refused and the device keeps, to be tried again.
//!
//! A request whose transfer failed for a reason that may pass is not answered, where the device's policy says so
//! ([`OnError`]): it waits here with its data, in the order in which it failed, and is begun anew after a while that grows,
//! or when somebody says that the reason is gone. The guest sees a slow disk. Others go on meanwhile; a flush
//! promises nothing of what waits, as that is not answered, and a barrier waits for it.
//!
//! Before: `complete`. After: `submit`, once more. A flush that failed is not kept: the kernel may have
//! dropped what it could not write, and no further try brings that back. Units: nanoseconds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::{Command, Queue};
use crate::acquire::GuestMemory;
use crate::engine::Engine;
use crate::receive::Requests;
use crate::request::{Finished, InFlight, Ready};

/// The first time between two tries, and the longest.
const SHORTEST: u64 = 100_000_000;
const LONGEST: u64 = 10_000_000_000;

/// What is done about a request that the medium refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnError {
    /// The guest is told.
    #[default]
    Report,
    /// It is kept where the image's file system is full, and tried again; the guest is told of other errors.
    HoldFull,
    /// It is kept whatever it is refused for, as long as another try can end otherwise.
    Hold,
}

impl OnError {
    /// Whether a request that failed with `errno` is kept.
    #[must_use]
    pub const fn keeps(self, errno: i32) -> bool {
        let full = matches!(errno, libc::ENOSPC | libc::EDQUOT);
        match self {
            Self::Report => false,
            Self::HoldFull => full,
            // What the image cannot do at all it will not do later either.
            Self::Hold => full || !matches!(errno, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS),
        }
    }
}

/// What the queues of a device keep, for others to see.
#[derive(Debug, Default)]
pub struct Stalls {
    requests: AtomicU64,
    errno: AtomicI32,
    /// How often somebody said that the reason is gone.
    told: AtomicU64,
}

impl Stalls {
    /// How many requests are kept, and with which positive `errno` the last of them failed.
    #[must_use]
    pub fn now(&self) -> Option<(u64, i32)> {
        match self.requests.load(Ordering::Relaxed) {
            0 => None,
            requests => Some((requests, self.errno.load(Ordering::Relaxed))),
        }
    }

    /// So many are kept by nobody any more.
    pub(super) fn gone(&self, requests: usize) {
        self.requests.fetch_sub(requests as u64, Ordering::Relaxed);
    }

    /// Has everything tried again. Whoever says so wakes the queues.
    pub fn resume(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }
}

/// What one queue keeps.
#[derive(Debug)]
pub(super) struct Stalled<S, H, P> {
    waiting: VecDeque<Ready<S, H, P>>,
    /// When they are tried again.
    pub(super) until: u64,
    interval: u64,
    told: u64,
}

impl<S, H, P> Default for Stalled<S, H, P> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), until: 0, interval: 0, told: 0 }
    }
}

impl<S, H, P> Stalled<S, H, P> {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// All of them, for whoever gives them up.
    pub(super) fn take(&mut self) -> VecDeque<Ready<S, H, P>> {
        std::mem::take(&mut self.waiting)
    }
}

impl<R, G, E, C> Queue<R, G, E, C>
where
    R: Requests,
    G: GuestMemory<Place = R::Place>,
    E: Engine<InFlight<G::Hold, R::Place>>,
{
    /// Takes out of `finished` what is kept.
    #[cold]
    pub(super) fn stall(&mut self) {
        let serving = &self.serving;
        if self.control.command() == Command::Drain || serving.standing.lost().is_some() {
            return;
        }
        let (stalled, stalls) = (&mut self.stalled, &serving.stalls);
        let kept = |done: &mut Finished<R::Slot, G::Hold, R::Place>| {
            done.result.is_err_and(|errno| serving.on_error.keeps(errno))
        };
        let before = stalled.waiting.len();
        for Finished { job, body, result } in self.finished.extract_if(.., kept) {
            stalls.errno.store(result.err().unwrap_or(0), Ordering::Relaxed);
            stalled.waiting.push_back(Ready { job, body });
        }
        let more = stalled.waiting.len().saturating_sub(before);
        if more == 0 {
            return;
        }
        stalls.requests.fetch_add(more as u64, Ordering::Relaxed);
        self.stats.stalled.add(more as u64);
        if before == 0 {
            let now = self.clock.now();
            // It went well for as long as the last wait: this is another story.
            let anew = now > stalled.until.saturating_add(stalled.interval);
            let before = if anew { 0 } else { stalled.interval };
            let interval = before.saturating_mul(2).clamp(SHORTEST, LONGEST);
            stalled.interval = interval;
            stalled.told = stalls.told.load(Ordering::Relaxed);
            stalled.until = now.saturating_add(interval);
            let why = std::io::Error::from_raw_os_error(stalls.errno.load(Ordering::Relaxed));
            tracing::warn!(requests = more, next_try_ms = interval / 1_000_000, "held: {why}");
        }
    }

    /// Begins anew what was kept, when it is time; at the end, to be answered however it goes. Says whether
    /// there was something.
    pub(super) fn unstall(&mut self, command: Command) -> Result<bool, hypervisor::HostError> {
        if self.stalled.is_empty() || command == Command::Stop {
            return Ok(false);
        }
        let stalls = &self.serving.stalls;
        let told = stalls.told.load(Ordering::Relaxed) != self.stalled.told;
        if told {
            self.stalled.interval = 0;
        }
        if !told && command != Command::Drain && self.clock.now() < self.stalled.until {
            return Ok(false);
        }
        let waiting = self.stalled.take();
        stalls.gone(waiting.len());
        for ready in waiting {
            self.submit.begin(&mut self.engine, ready);
        }
        self.engine.kick()?;
        Ok(true)
    }
}
