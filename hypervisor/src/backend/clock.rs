//! The time, asked for only where it decides something.
//!
//! Mostly asking costs some 20 ns. In a paravirtual domain of Xen it is a system call each time, which
//! costs as much as a small request's own. So a queue's rounds share an answer, and what needs to know
//! only about when it is goes by an older one.

use std::cell::Cell;

use nix::time::{ClockId, clock_gettime};

/// Rounds that may go by an answer that is to be about right.
const ROUNDS: u32 = 64;

/// A queue's idea of the time, in nanoseconds of a clock that all queues share and that never goes back.
#[derive(Debug)]
pub struct Clock {
    last: Cell<u64>,
    /// Rounds since it was asked for; none where that was in this one.
    rounds: Cell<u32>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// One that knows what it is.
    #[must_use]
    pub fn new() -> Self {
        Self { last: Cell::new(read()), rounds: Cell::new(0) }
    }

    /// What it is, the same all through a round.
    #[inline]
    pub fn now(&self) -> u64 {
        if self.rounds.get() > 0 {
            self.renew();
        }
        self.last.get()
    }

    /// About what it is: some rounds of work ago, and never from before a sleep.
    #[inline]
    pub fn about(&self) -> u64 {
        if self.rounds.get() > ROUNDS {
            self.renew();
        }
        self.last.get()
    }

    /// What it was when it was last asked for, however long ago.
    #[inline]
    #[must_use]
    pub const fn recent(&self) -> u64 {
        self.last.get()
    }

    /// Another round begins.
    #[inline]
    pub fn pass(&self) {
        self.rounds.set(self.rounds.get().saturating_add(1));
    }

    /// Time has passed that matters, and is not known.
    #[inline]
    pub fn forget(&self) {
        self.rounds.set(u32::MAX);
    }

    /// Time has passed that matters.
    #[inline]
    pub fn renew(&self) {
        self.last.set(read());
        self.rounds.set(0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_one_time_and_some_rounds_about_one() {
        let clock = Clock::new();
        // What it says is told apart by what could not be the time.
        let asks = |which: fn(&Clock) -> u64| {
            clock.last.set(7);
            which(&clock) != 7
        };
        assert_eq!([asks(Clock::now), asks(Clock::about)], [false, false]);
        clock.pass();
        assert_eq!([asks(Clock::about), asks(Clock::now), asks(Clock::now)], [false, true, false]);
        for _ in 0..ROUNDS {
            clock.pass();
        }
        assert!(!asks(Clock::about));
        clock.pass();
        assert!(asks(Clock::about));
        clock.forget();
        assert!(asks(Clock::about), "never from before a sleep");
        clock.pass();
        assert_eq!(clock.recent(), clock.about());
    }
}
