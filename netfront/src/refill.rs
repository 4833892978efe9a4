//! How many pages to keep posted.
//!
//! Few pages that are used over and over stay in the cache, and many carry through a burst. So no more
//! are kept posted than were needed lately, between two marks: where most of them were filled between
//! two looks, twice as many are posted from then on; where for a long time less than half were,
//! fewer.

/// Looks in a row that must find some pages filled and most still empty before fewer are posted. Those that
/// find nothing new say nothing: how many there are depends on who looks.
const PATIENCE: u32 = 1024;

/// How many pages to keep posted.
#[derive(Clone, Debug)]
pub(crate) struct Refill {
    low: u32,
    high: u32,
    target: u32,
    calm: u32,
    /// How many were empty at the last look, with those that were posted then.
    last: u32,
}

impl Refill {
    /// Never fewer than `low`, never more than `high`.
    pub(crate) fn new(low: u32, high: u32) -> Self {
        let high = high.max(1);
        let low = low.clamp(1, high);
        Self { low, high, target: low, calm: 0, last: 0 }
    }

    /// How many more to post where `empty` are posted and not filled. Not a few at a time, for
    /// each time costs a look of the backend's.
    pub(crate) fn want(&mut self, empty: u32) -> u32 {
        if empty < self.target / 4 {
            self.target = self.target.saturating_mul(2).min(self.high);
            self.calm = 0;
        } else if empty > self.target / 2 {
            self.calm = self.calm.saturating_add(u32::from(empty != self.last));
            if self.calm > PATIENCE {
                self.target = (self.target / 2).max(self.low);
                self.calm = 0;
            }
        } else {
            self.calm = 0;
        }
        let missing = self.target.saturating_sub(empty);
        let wanted = if missing >= (self.target / 8).max(1) { missing } else { 0 };
        self.last = empty.saturating_add(wanted);
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_make_it_more_and_calm_makes_it_less() {
        let mut refill = Refill::new(64, 256);
        assert_eq!(refill.want(64), 0);
        assert_eq!(refill.want(60), 0, "not a few at a time");
        assert_eq!(refill.want(50), 14);
        assert_eq!(refill.want(10), 118);
        assert_eq!(refill.want(0), 256);
        assert_eq!(refill.want(0), 256, "no more than the most");
        for _ in 0..=4 * PATIENCE {
            assert_eq!(refill.want(256), 0, "nothing was filled, so nothing is known");
        }
        assert_eq!(refill.want(200), 56);
        for n in 0..=PATIENCE {
            assert_eq!(refill.want(250 + n % 2), 0);
        }
        assert_eq!(refill.want(100), 28);
        for n in 0..4 * PATIENCE {
            assert_eq!(refill.want(250 + n % 2), 0);
        }
        assert_eq!(refill.want(50), 14, "no fewer than the least");
    }

    #[test]
    fn marks_that_make_no_sense_still_post_something() {
        assert_eq!(Refill::new(0, 0).want(0), 1);
        assert_eq!(Refill::new(9, 4).want(0), 4);
    }
}
