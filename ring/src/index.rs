//! Free-running ring indexes.
//!
//! An index counts messages ever put on the ring and wraps at 2^32, so *before* and *after* have no
//! meaning without a third point to measure from. There is no order on it for that reason; ask for
//! the distance instead. Source: `RING_IDX` in io/ring.h (RELEASE-4.17). Unit: slots.

use core::fmt;

/// A position on the ring since it was made, modulo 2^32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RingIndex(pub u32);

impl RingIndex {
    /// The position `slots` further on.
    #[must_use]
    #[inline]
    pub const fn add(self, slots: u32) -> Self {
        Self(self.0.wrapping_add(slots))
    }

    /// How many steps lead from `earlier` to here.
    #[must_use]
    #[inline]
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether a producer that moves from `old` to `self` passes the point at which its consumer
    /// asked to be told, `event` (the last step of `RING_PUSH_*_AND_CHECK_NOTIFY`).
    #[must_use]
    #[inline]
    pub const fn passes(self, event: Self, old: Self) -> bool {
        self.since(event) < self.since(old)
    }
}

impl fmt::Display for RingIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::RingIndex;

    #[test]
    fn distance_survives_the_wrap() {
        let before = RingIndex(u32::MAX - 1);
        let after = before.add(5);
        assert_eq!(after, RingIndex(3));
        assert_eq!(after.since(before), 5);
        assert_eq!(before.since(after), u32::MAX - 4);
    }

    #[test]
    fn a_producer_passes_an_event_only_within_its_step() {
        for base in [0_u32, 7, u32::MAX - 2] {
            let at = |n: u32| RingIndex(base).add(n);
            // One that stands still passes nothing, even where the event is where it stands.
            assert!(!at(0).passes(at(0), at(0)));
            // The event names the index that the producer will reach, so the end counts ...
            assert!(at(4).passes(at(4), at(0)));
            assert!(at(4).passes(at(1), at(0)));
            // ... and the start, which it reached the last time, does not.
            assert!(!at(4).passes(at(0), at(0)));
            assert!(!at(4).passes(at(5), at(0)));
        }
    }
}
