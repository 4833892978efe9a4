//! When a backend listens for its guest's events.
//!
//! An event says no more than that a ring is worth a look: between being taken and being listened for
//! again a channel is masked, so that any number of events costs one wake-up. A guest that keeps
//! sending events which bring nothing is not listened to for a while each time; its rings are looked at
//! instead (advisories 331, 332). Units: nanoseconds.

use crate::Counter;

/// Events in a row that brought nothing, before the first pause. A few are normal: the guest may
/// send while we look already.
const PATIENCE: u32 = 8;

/// The first pause, and the longest.
const PAUSE_NS: u64 = 50_000;
const LONGEST_NS: u64 = 2_000_000;

/// Decides when to listen for the guest's events.
#[derive(Debug, Default)]
pub struct Listener {
    /// Events in a row that brought nothing.
    empty: u32,
    /// The last sleep ended with an event, and nothing was found since.
    rang: bool,
}

impl Listener {
    /// An event came, which `events` counts.
    pub fn rang(&mut self, events: &Counter) {
        events.add(1);
        self.rang = true;
    }

    /// There was something, whether or not an event said so.
    #[inline]
    pub fn found(&mut self) {
        self.rang = false;
        self.empty = 0;
    }

    /// Before sleeping: for how long not to listen, in nanoseconds, if at all. `empty` counts events
    /// that brought nothing, `storms` the pauses for them.
    pub fn pause(&mut self, empty: &Counter, storms: &Counter) -> Option<u64> {
        if core::mem::take(&mut self.rang) {
            empty.add(1);
            self.empty = self.empty.saturating_add(1);
            let over = self.empty.checked_sub(PATIENCE)?;
            storms.add(1);
            return Some(PAUSE_NS.checked_shl(over.min(16)).unwrap_or(LONGEST_NS).min(LONGEST_NS));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_storm_is_answered_with_longer_and_longer_pauses() {
        let (events, empty, storms) = <(Counter, Counter, Counter)>::default();
        let mut listener = Listener::default();
        let mut pauses = Vec::new();
        for _ in 0..PATIENCE + 20 {
            listener.rang(&events);
            pauses.push(listener.pause(&empty, &storms));
        }
        let (patient, paused) = pauses.split_at(PATIENCE as usize - 1);
        assert!(patient.iter().all(Option::is_none));
        assert_eq!(paused[0], Some(PAUSE_NS));
        assert!(paused.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(paused.last(), Some(&Some(LONGEST_NS)));
        assert_eq!(listener.pause(&empty, &storms), None, "no event, no pause");
        assert_eq!((events.get(), empty.get(), storms.get()), (28, 28, 21));
    }

    #[test]
    fn events_that_bring_something_never_pause() {
        let (events, empty, storms) = <(Counter, Counter, Counter)>::default();
        let mut listener = Listener::default();
        for _ in 0..1000 {
            listener.rang(&events);
            listener.found();
            assert_eq!(listener.pause(&empty, &storms), None);
        }
        assert_eq!((empty.get(), storms.get()), (0, 0));
    }
}
