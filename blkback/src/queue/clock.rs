//! The time, asked for only where it decides something.
//!
//! Mostly asking costs some 20 ns. In a paravirtual domain of Xen it is a system call each time, which
//! costs as much as a small request's own.

use nix::time::{ClockId, clock_gettime};

/// A round's idea of the time, in nanoseconds of a clock that all queues share and that never goes back.
#[derive(Debug)]
pub(super) struct Clock {
    last: u64,
    current: bool,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { last: read(), current: true }
    }

    /// What it is, the same all through a round.
    #[inline]
    pub(super) fn now(&mut self) -> u64 {
        if !self.current {
            self.renew();
        }
        self.last
    }

    /// What it was when it was last asked for: in this round, or the last that did anything.
    pub(super) const fn recent(&self) -> u64 {
        self.last
    }

    /// Another round begins.
    #[inline]
    pub(super) const fn pass(&mut self) {
        self.current = false;
    }

    /// Time has passed that matters.
    #[inline]
    pub(super) fn renew(&mut self) {
        self.last = read();
        self.current = true;
    }
}

#[inline]
fn read() -> u64 {
    // Cannot fail for this clock.
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec()).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
