//! Holds requests back where the device's limits are reached.
//!
//! Two token buckets, operations and bytes per second, that all queues of a device share and that may
//! be changed at any time. A bucket holds what the limit gives in [`BURST`]: after a pause that much
//! goes through at once, and over any longer time no more than the limit and one burst. A
//! request that is larger than what is left goes through once there is no debt and makes one, so
//! that any limit lets any request through in the end.
//!
//! A request that has to wait is held outside the ring, in the order in which it came; flushes that
//! carry no data are not limited and overtake it. Nothing waits for a held request but what
//! came after it in its own queue.
//!
//! Before: `validate`. After: `acquire`. Units: operations, bytes, nanoseconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a limit gives in this time may go at once.
pub const BURST: Duration = Duration::from_millis(100);

const SECOND_NS: u64 = 1_000_000_000;
const BURST_NS: u64 = 100_000_000;

/// One device's limits, shared by its queues and by whoever changes them.
#[derive(Debug, Default)]
pub struct Limits {
    operations: Bucket,
    bytes: Bucket,
}

/// A rate, and how far into the future it is used up.
///
/// Kept as one moment instead of a number of tokens (the generic cell rate algorithm), so that taking
/// is one compare-and-exchange and nothing has to be refilled.
#[derive(Debug, Default)]
struct Bucket {
    /// Units a second; 0 for no limit.
    rate: AtomicU64,
    /// When all that was taken will have been paid for.
    paid_ns: AtomicU64,
}

impl Limits {
    /// Limits of that many operations and bytes a second; `None` for no limit.
    #[must_use]
    pub fn new(operations: Option<u64>, bytes: Option<u64>) -> Self {
        let limits = Self::default();
        limits.set(operations, bytes);
        limits
    }

    /// Changes the limits, from now on and forgetting what was used. A limit of zero is none:
    /// ask for `None` instead.
    pub fn set(&self, operations: Option<u64>, bytes: Option<u64>) {
        self.operations.set(operations);
        self.bytes.set(bytes);
    }

    /// Operations and bytes a second, as they are now.
    #[must_use]
    pub fn get(&self) -> (Option<u64>, Option<u64>) {
        (self.operations.get(), self.bytes.get())
    }

    /// Lets a request of so many operations and bytes through, if it may go at `now_ns`.
    ///
    /// # Errors
    ///
    /// When it is worth asking again, in the same nanoseconds as `now_ns`.
    #[inline]
    pub fn admit(&self, (operations, bytes): (u64, u64), now_ns: u64) -> Result<(), u64> {
        if self.operations.unlimited() && self.bytes.unlimited() {
            return Ok(());
        }
        // Neither is charged before both have room. Between the two looks another queue may use
        // the room up; that overdraws by one request, which the next one pays for.
        self.operations.ready(now_ns)?;
        self.bytes.ready(now_ns)?;
        self.operations.charge(operations, now_ns);
        self.bytes.charge(bytes, now_ns);
        Ok(())
    }
}

impl Bucket {
    fn set(&self, rate: Option<u64>) {
        self.paid_ns.store(0, Ordering::Relaxed);
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|&rate| rate != 0)
    }

    #[inline]
    fn unlimited(&self) -> bool {
        self.rate.load(Ordering::Relaxed) == 0
    }

    fn ready(&self, now_ns: u64) -> Result<(), u64> {
        if self.unlimited() {
            return Ok(());
        }
        let paid = self.paid_ns.load(Ordering::Relaxed);
        if paid <= now_ns.saturating_add(BURST_NS) {
            Ok(())
        } else {
            Err(paid.saturating_sub(BURST_NS))
        }
    }

    fn charge(&self, units: u64, now_ns: u64) {
        let Some(rate) = self.get() else { return };
        let cost = u128::from(units)
            .saturating_mul(u128::from(SECOND_NS))
            .checked_div(u128::from(rate))
            .and_then(|ns| u64::try_from(ns).ok())
            .unwrap_or(u64::MAX);
        // Never fails: the closure always gives a value.
        let _ = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
            Some(paid.max(now_ns).saturating_add(cost))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks as fast as it can for `total_ns` and says how many got through.
    fn through(limits: &Limits, bytes: u64, from_ns: u64, total_ns: u64) -> u64 {
        let (mut now, mut done) = (from_ns, 0);
        while now < from_ns + total_ns {
            match limits.admit((1, bytes), now) {
                Ok(()) => done += 1,
                Err(later) => {
                    assert!(later > now, "a held request would ask again at once");
                    now = later;
                }
            }
        }
        done
    }

    #[test]
    fn without_limits_everything_goes() {
        let limits = Limits::default();
        assert_eq!(limits.get(), (None, None));
        for _ in 0..1000 {
            assert_eq!(limits.admit((1, 1 << 20), 0), Ok(()));
        }
    }

    #[test]
    fn operations_keep_to_their_rate_and_one_burst() {
        for rate in [1, 10, 999, 100_000] {
            let limits = Limits::new(Some(rate), None);
            let done = through(&limits, 4096, 5, 10 * SECOND_NS);
            let most = rate * 10 + rate / 10 + 2;
            assert!(done <= most && done >= rate * 10, "{done} of {most} at {rate} a second");
        }
    }

    #[test]
    fn bytes_keep_to_their_rate_and_large_requests_still_go() {
        let limits = Limits::new(None, Some(1 << 20));
        let done = through(&limits, 1 << 20, 0, 10 * SECOND_NS);
        assert!((10..=12).contains(&done), "{done}");
        let done = through(&Limits::new(None, Some(1)), 1 << 40, 0, 10 * SECOND_NS);
        assert_eq!(done, 1);
    }

    #[test]
    fn a_request_of_several_operations_pays_for_each() {
        let limits = Limits::new(Some(1000), None);
        let (mut now, mut done) = (0, 0);
        while now < 10 * SECOND_NS {
            match limits.admit((50, 0), now) {
                Ok(()) => done += 50,
                Err(later) => now = later,
            }
        }
        assert!((10_000..=10_200).contains(&done), "{done}");
    }

    #[test]
    fn a_change_takes_effect_at_once_and_forgets_debts() {
        let limits = Limits::new(Some(1), None);
        assert_eq!(through(&limits, 0, 0, SECOND_NS), 2);
        assert!(limits.admit((1, 0), SECOND_NS / 2).is_err());
        limits.set(Some(1000), None);
        assert_eq!(limits.admit((1, 0), SECOND_NS / 2), Ok(()));
        limits.set(None, None);
        assert_eq!(limits.get(), (None, None));
        assert_eq!(limits.admit((1, u64::MAX), 0), Ok(()));
    }

    #[test]
    fn queues_share_one_limit() {
        let limits = Limits::new(Some(1000), None);
        let (mut now, mut done) = (0, [0u64; 2]);
        while now < 10 * SECOND_NS {
            let mut next = u64::MAX;
            for queue in &mut done {
                match limits.admit((1, 4096), now) {
                    Ok(()) => (*queue, next) = (*queue + 1, now),
                    Err(later) => next = next.min(later),
                }
            }
            now = now.max(next);
        }
        let all = done[0] + done[1];
        assert!((10_000..=10_110).contains(&all), "{done:?}");
        assert!(done[1] > 0, "{done:?}");
    }
}
