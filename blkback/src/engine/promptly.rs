//! What is done on the queue's own thread although it is a file's, and what keeps writes from io_uring's workers.
//!
//! A read of what lies in the page cache is a copy: one call makes it, for less than handing it over and being
//! told of its end. Only that call can tell whether it lies there, so reads are tried until they have missed a
//! few times in a row, and again after a while.
//!
//! io_uring first tries an operation without waiting and hands it to a worker where that is refused; the
//! worker's wake-up costs several times a small write. File systems refuse two kinds of writes
//! that would not have waited at all: those through the page cache, most of them always, and those
//! past it whenever the file's times are due to be brought up to date, once in a tick of the clock.

//!
//! Where a guest asks for one write at a time and waits for it, writes past the page cache are made on the
//! queue's thread as well: the kernel then does what is due to the file's times by the way, and tells of
//! the write's end without handing that to a worker either.

use std::fs::File;
use std::time::Duration;

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Part of a page is written only once the rest was read.
const PAGE: u64 = 4096;
/// What a copy into the page cache never takes, and a writer that the kernel makes wait for the disk
/// always does. More than two ticks of the clock that it is measured by.
const SLOW: Duration = Duration::from_millis(10);
/// Writes that go to workers after slow ones, and reads that go to the kernel's ring after missed ones.
const ASIDE: u32 = 64;
/// Reads in a row that have to wait for the disk until others are not tried.
const MISSES: u32 = 4;
/// Turns of one write each after which the next is expected to be alone as well.
const ALONE: u32 = 32;
/// The longest write that a queue waits for.
const LONGEST: u64 = 128 << 10;

/// The time by the clock that file systems go by. It advances in ticks of a few milliseconds, and reading it
/// never takes a system call.
fn coarse() -> Duration {
    // Cannot fail for this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

/// Whether writes through the page cache are to be made on the queue's own thread.
#[derive(Debug, Default)]
pub(super) struct Pace {
    aside: u32,
    /// When the first of those was begun that were made since the pace was last judged.
    begun: Option<Duration>,
    made: u32,
}

impl Pace {
    /// Whether `len` bytes at `offset` can be expected to be a copy and no more; they are then to be
    /// written at once.
    pub(super) fn promises(&mut self, offset: u64, len: u64) -> bool {
        if self.aside > 0 {
            self.aside = self.aside.saturating_sub(1);
            return false;
        }
        if !offset.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return false;
        }
        self.make();
        true
    }

    fn make(&mut self) {
        self.begun.get_or_insert_with(coarse);
        self.made = self.made.saturating_add(1);
    }

    /// Judges by what was made since the last time.
    pub(super) fn judge(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.took(coarse().saturating_sub(begun));
        }
    }

    fn took(&mut self, time: Duration) {
        if time >= SLOW.saturating_mul(std::mem::take(&mut self.made)) {
            self.aside = ASIDE;
        }
    }
}

/// Whether reads are to be tried in the page cache, on the queue's own thread.
#[derive(Debug, Default)]
pub(super) struct Cached {
    /// Reads that are not tried.
    aside: u32,
    /// Misses in a row.
    missed: u32,
    /// The file system cannot tell.
    refused: bool,
}

impl Cached {
    /// Whether the next read is worth a try.
    pub(super) fn promises(&mut self) -> bool {
        let tried = self.aside == 0 && !self.refused;
        self.aside = self.aside.saturating_sub(1);
        tried
    }

    /// How a try went.
    pub(super) fn tried(&mut self, result: Result<u64, i32>) {
        self.missed = if result.is_ok() { 0 } else { self.missed.saturating_add(1) };
        if self.missed >= MISSES {
            (self.missed, self.aside) = (0, ASIDE);
        }
        self.refused |= result == Err(libc::EOPNOTSUPP);
    }
}

/// Whether transfers past the page cache come one at a time, each after the queue has slept.
#[derive(Debug, Default)]
pub(super) struct Lone {
    pace: Pace,
    /// Transfers since the queue last slept.
    since: u32,
    /// Times in a row that it was one.
    streak: u32,
}

impl Lone {
    /// Another transfer comes. Says whether it is a write of `len` bytes that is to be waited for: nothing
    /// else is expected before it is over.
    pub(super) fn promises(&mut self, write: bool, len: u64) -> bool {
        self.since = self.since.saturating_add(1);
        if self.since > 1 {
            self.streak = 0;
        }
        if self.streak < ALONE || !write || len > LONGEST {
            return false;
        }
        if self.pace.aside > 0 {
            self.pace.aside = self.pace.aside.saturating_sub(1);
            return false;
        }
        self.pace.make();
        true
    }

    /// A write that was waited for is over.
    pub(super) fn over(&mut self) {
        self.pace.judge();
    }

    /// The queue goes to sleep until the guest asks for more.
    pub(super) fn slept(&mut self) {
        if std::mem::take(&mut self.since) == 1 {
            self.streak = self.streak.saturating_add(1);
        }
    }
}

/// When a file's times were last brought up to date, by the clock that file systems go by.
#[derive(Debug)]
pub(super) struct Times {
    renewed: TimeSpec,
}

impl Times {
    /// Not yet.
    pub(super) const fn new() -> Self {
        Self { renewed: TimeSpec::new(0, 0) }
    }

    /// Brings the times of `file`, which is about to be written, up to date if they are due. Where
    /// that is refused the write will do it, as ever.
    pub(super) fn renew(&mut self, file: &File) {
        let Ok(now) = clock_gettime(ClockId::CLOCK_REALTIME_COARSE) else { return };
        if now != self.renewed {
            self.renewed = now;
            let _ = futimens(file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_write_sends_those_after_it_aside_for_a_while() {
        let mut pace = Pace::default();
        assert!(pace.promises(8192, 4096));
        pace.took(Duration::from_millis(9));
        assert!(pace.promises(0, 65536) && pace.promises(0, 65536));
        pace.took(SLOW);
        assert!(pace.promises(0, 4096));
        pace.took(SLOW);
        let refused = (0..1000).take_while(|_| !pace.promises(0, 4096)).count();
        assert_eq!(refused, ASIDE as usize);
    }

    #[test]
    fn reads_are_tried_again_after_misses() {
        let mut cached = Cached::default();
        let mut turn = |result| {
            let tried = cached.promises();
            if tried {
                cached.tried(result);
            }
            tried
        };
        for _ in 1..MISSES {
            assert!(turn(Err(libc::EAGAIN)));
        }
        assert!(turn(Ok(4096)), "a hit between them");
        for _ in 0..MISSES {
            assert!(turn(Err(libc::EAGAIN)));
        }
        let left_out = (0..1000).take_while(|_| !turn(Ok(4096))).count();
        assert_eq!(left_out, ASIDE as usize);
        assert!(turn(Err(libc::EOPNOTSUPP)));
        assert!((0..1000).all(|_| !turn(Ok(4096))));
    }

    #[test]
    fn only_a_guest_that_waits_for_each_write_is_waited_for() {
        let mut lone = Lone::default();
        let mut turn = |transfers: u32| {
            let mut promised = false;
            for _ in 0..transfers {
                promised = lone.promises(true, 4096);
            }
            lone.over();
            lone.slept();
            promised
        };
        assert!((0..ALONE).all(|_| !turn(1)));
        assert!(turn(1));
        assert!(turn(1));
        // What came while it waited makes two in one turn, and all begins anew.
        assert!(!turn(2));
        assert!((0..ALONE).all(|_| !turn(1)));
        assert!(turn(1));
        assert!(!lone.promises(true, LONGEST + 1));
        lone.slept();
        assert!(!lone.promises(false, 4096));
        lone.slept();
        assert!(lone.promises(true, 4096));
        lone.pace.took(SLOW);
        lone.slept();
        assert!(!lone.promises(true, 4096));
    }

    #[test]
    fn parts_of_pages_are_not_promised() {
        let mut pace = Pace::default();
        assert!(!pace.promises(512, 4096));
        assert!(!pace.promises(4096, 512));
    }

    #[test]
    fn times_are_brought_up_to_date() {
        let file = tempfile::tempfile().unwrap();
        let long_ago = TimeSpec::new(1, 0);
        futimens(&file, &long_ago, &long_ago).unwrap();
        let mut times = Times::new();
        times.renew(&file);
        let modified = file.metadata().unwrap().modified().unwrap();
        assert!(modified.elapsed().unwrap() < Duration::from_secs(3600));
    }
}
