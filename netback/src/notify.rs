//! Tells the guest of what was published.
//!
//! A ring says whether the guest wants to be told; for its events listens [`ring::Listener`].

use hypervisor::HostError;
use hypervisor::event::Channel;
use ring::Notify;

use crate::connect::Channels;
use crate::stats::Stats;

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
