//! Tells the guest of its answers.
//!
//! The last stage. The ring says whether the guest wants to be told; for its events listens
//! [`ring::Listener`].

use hypervisor::HostError;
use hypervisor::event::Channel;
use ring::Notify;

use crate::stats::Stats;

/// Sends an event if the guest wants one.
///
/// # Errors
///
/// The channel is no more.
#[inline]
pub fn notify<C: Channel>(channel: &C, wanted: Notify, stats: &Stats) -> Result<(), HostError> {
    if wanted.is_needed() {
        stats.notified.add(1);
        channel.notify()
    } else {
        stats.not_notified.add(1);
        Ok(())
    }
}
