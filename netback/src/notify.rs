//! Tells the guest of what was published, and listens for its events.
//!
//! A ring says whether the guest wants to be told. The other way round, an event says no more than that
//! the rings are worth a look: between being taken and being listened for again a channel is masked, so
//! that any number of events costs one wake-up. A guest that keeps sending events which bring
//! nothing is not listened to for a while each time; its rings are looked at instead (advisories 331,
//! 332). Units: nanoseconds.

use hypervisor::HostError;
use hypervisor::event::Channel;
use ring::Notify;

use crate::connect::Channels;
use crate::stats::Stats;

/// Events in a row that brought nothing, before the first pause. A few are normal: the guest may
/// send while we look already.
const PATIENCE: u32 = 8;

/// The first pause, and the longest.
const PAUSE_NS: u64 = 50_000;
const LONGEST_NS: u64 = 2_000_000;

/// Sends the guest an event for each channel over which it wants one: for what was published to the
/// ring on which it sends, and to that on which it receives.
///
/// # Errors
///
/// A channel is no more.
#[inline]
pub fn notify<C: Channel>(
    channels: &Channels<C>,
    tx: Option<Notify>,
    rx: Option<Notify>,
    stats: &Stats,
) -> Result<(), HostError> {
    let wanted = [tx, rx].map(|notify| notify.is_some_and(Notify::is_needed));
    let send = |channel: &C| {
        stats.notified.add(1);
        channel.notify()
    };
    match (channels, wanted) {
        (_, [false, false]) => {
            stats.not_notified.add(u64::from(tx.is_some() || rx.is_some()));
            Ok(())
        }
        (Channels::Both(channel), _) => send(channel),
        (Channels::Split { tx, .. }, [true, false]) => send(tx),
        (Channels::Split { rx, .. }, [false, true]) => send(rx),
        (Channels::Split { tx, rx }, [true, true]) => send(tx).and_then(|()| send(rx)),
    }
}

/// Decides when to listen for the guest's events.
#[derive(Debug, Default)]
pub struct Listener {
    /// Events in a row that brought nothing.
    empty: u32,
    /// The last sleep ended with an event, and nothing was found since.
    rang: bool,
}

impl Listener {
    /// An event came.
    pub fn rang(&mut self, stats: &Stats) {
        stats.events.add(1);
        self.rang = true;
    }

    /// There was something, whether or not an event said so.
    #[inline]
    pub fn found(&mut self) {
        self.rang = false;
        self.empty = 0;
    }

    /// Before sleeping: for how long not to listen, in nanoseconds, if at all.
    pub fn pause(&mut self, stats: &Stats) -> Option<u64> {
        if std::mem::take(&mut self.rang) {
            stats.empty_events.add(1);
            self.empty = self.empty.saturating_add(1);
            let over = self.empty.checked_sub(PATIENCE)?;
            stats.storms.add(1);
            return Some(PAUSE_NS.checked_shl(over.min(16)).unwrap_or(LONGEST_NS).min(LONGEST_NS));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_answered_with_longer_and_longer_pauses() {
        let (stats, mut listener) = (Stats::default(), Listener::default());
        let mut pauses = Vec::new();
        for _ in 0..PATIENCE + 20 {
            listener.rang(&stats);
            pauses.push(listener.pause(&stats));
        }
        let (patient, paused) = pauses.split_at(PATIENCE as usize - 1);
        assert!(patient.iter().all(Option::is_none));
        assert_eq!(paused[0], Some(PAUSE_NS));
        assert!(paused.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(paused.last(), Some(&Some(LONGEST_NS)));
        listener.found();
        listener.rang(&stats);
        assert_eq!(listener.pause(&stats), None, "what brought something is no storm");
    }
}
