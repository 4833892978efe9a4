//! What keeps writes to files from io_uring's workers.
//!
//! io_uring first tries an operation without waiting and hands it to a worker where that is refused; the
//! worker's wake-up costs several times a small write. File systems refuse two kinds of writes
//! that would not have waited at all: those through the page cache, most of them always, and those
//! past it whenever the file's times are due to be brought up to date, once in a tick of the clock.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Part of a page is written only once the rest was read.
const PAGE: u64 = 4096;
/// What a copy into the page cache never takes, and a writer that the kernel makes wait for the disk
/// always does.
const SLOW: Duration = Duration::from_millis(5);
/// Writes that go to workers after slow ones.
const ASIDE: u32 = 64;

/// Whether writes through the page cache are to be made on the queue's own thread.
#[derive(Debug, Default)]
pub(super) struct Pace {
    aside: u32,
    /// When the first of those was begun that were made since the pace was last judged. The clock
    /// is asked once for all of them: where it takes a system call, it costs as much as one.
    begun: Option<Instant>,
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
        self.begun.get_or_insert_with(Instant::now);
        self.made = self.made.saturating_add(1);
        true
    }

    /// Judges by what was made since the last time.
    pub(super) fn judge(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.took(begun.elapsed());
        }
    }

    fn took(&mut self, time: Duration) {
        if time >= SLOW.saturating_mul(std::mem::take(&mut self.made)) {
            self.aside = ASIDE;
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
        pace.took(Duration::from_millis(4));
        assert!(pace.promises(0, 65536) && pace.promises(0, 65536));
        pace.took(SLOW);
        assert!(pace.promises(0, 4096));
        pace.took(SLOW);
        let refused = (0..1000).take_while(|_| !pace.promises(0, 4096)).count();
        assert_eq!(refused, ASIDE as usize);
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
