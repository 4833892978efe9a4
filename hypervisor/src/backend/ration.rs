//! How much a guest can cause that outlasts it: lines in the host's log, and writes to its store.
//!
//! A guest may connect and disconnect as fast as it can, or break the protocol in ever new ways. Some of
//! that goes through at once, then a little at a time; what is left out is counted.

use std::time::{Duration, Instant};

/// So many at once, and one more in each interval after that.
#[derive(Debug)]
pub struct Ration {
    most: u32,
    every: Duration,
    left: u32,
    /// Until when `left` counts what was added.
    counted: Instant,
}

impl Ration {
    /// Lines of log, and reasons in the store.
    #[must_use]
    pub fn of_words(now: Instant) -> Self {
        Self::new(40, Duration::from_secs(3), now)
    }

    /// Offers and connections, each of which writes a dozen keys.
    #[must_use]
    pub fn of_steps(now: Instant) -> Self {
        Self::new(200, Duration::from_millis(20), now)
    }

    pub(super) fn new(most: u32, every: Duration, now: Instant) -> Self {
        Self { most, every, left: most, counted: now }
    }

    /// Takes one.
    ///
    /// # Errors
    ///
    /// There is none; when there is one again.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.counted);
        let more = passed.as_nanos().checked_div(self.every.as_nanos()).unwrap_or(0);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(self.most);
        if self.left == self.most {
            self.counted = now;
        } else if let Some(counted) = self.counted.checked_add(self.every.saturating_mul(more)) {
            self.counted = counted;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.counted.checked_add(self.every).unwrap_or(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_and_then_one_at_a_time() {
        let second = Duration::from_secs(1);
        let begun = Instant::now();
        let mut ration = Ration::new(3, second, begun);
        let mut many = |at: Instant| (0..100).take_while(|_| ration.take(at).is_ok()).count();
        assert_eq!(many(begun), 3);
        assert_eq!(many(begun + second / 2), 0);
        assert_eq!((many(begun + second), many(begun + second * 3 / 2)), (1, 0));
        // What was not taken is kept up to where it began, and parts of an interval with it.
        assert_eq!((many(begun + second * 5 / 2), many(begun + second * 3)), (1, 1));
        assert_eq!(many(begun + second * 100), 3);
        let next = ration.take(begun + second * 100).unwrap_err();
        assert_eq!(next, begun + second * 101);
        assert_eq!(ration.take(next), Ok(()));
    }
}
