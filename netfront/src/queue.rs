//! One queue of an interface: what its caller sends and receives, and the link to a backend.
//!
//! The queue outlives links. It takes packets and gives packets; a [`Link`] comes when the device is
//! connected ([`attach`](Queue::attach)) and goes when the backend does
//! ([`detach`](Queue::detach)). What was on the transmit ring then is lost, as networks lose packets;
//! pages to receive into are posted anew.
//!
//! ```text
//! caller -> send, send_place -> flush -> (notify)
//! caller <- receive -> release, flush -> (notify)
//! ```
//!
//! Nothing here waits. A caller that polls receives, sends and flushes as often as it likes; one
//! that sleeps calls [`arm`](Queue::arm) first, sleeps only if that found nothing, and wakes by the
//! link's event channels. One caller at a time: sharing a queue is its owner's affair.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hypervisor::PeerFault;
use hypervisor::event::{Channel, Events};
use hypervisor::memory::Granting;
use ring::Recheck;

use crate::link::Link;

/// What a queue has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Packets put on a ring.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Pieces of packets that the backend says it failed to send.
    pub failed: u64,
    /// Pieces of packets that the backend says it dropped.
    pub dropped: u64,
    /// Pieces of packets that were on a ring when its backend went away.
    pub interrupted: u64,
    /// Packets received.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Chains of the backend's without a packet that could be used.
    pub unusable: u64,
    /// Notifications sent to the backend.
    pub notified: u64,
}

impl Counters {
    /// Adds another queue's.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.sent, other.sent),
            (&mut self.sent_bytes, other.sent_bytes),
            (&mut self.failed, other.failed),
            (&mut self.dropped, other.dropped),
            (&mut self.interrupted, other.interrupted),
            (&mut self.received, other.received),
            (&mut self.received_bytes, other.received_bytes),
            (&mut self.unusable, other.unusable),
            (&mut self.notified, other.notified),
        ];
        for (sum, more) in pairs {
            *sum = sum.saturating_add(more);
        }
    }
}

/// One queue.
pub struct Queue<H: Granting + Events> {
    pub(crate) link: Option<Link<H>>,
    /// Which connection this is: what was taken from an earlier one is not of this one's pages.
    pub(crate) epoch: u32,
    pub(crate) fault: Option<PeerFault>,
    pub(crate) multicast_control: bool,
    pub(crate) counters: Counters,
    /// For packets that have to be looked at before they are sent.
    pub(crate) scratch: Vec<u8>,
}

impl<H: Granting + Events> Default for Queue<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Granting + Events> Queue<H> {
    /// A queue without a link yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            link: None,
            epoch: 0,
            fault: None,
            multicast_control: false,
            counters: Counters::default(),
            scratch: Vec::new(),
        }
    }

    /// Goes on over `link`: posts pages to receive into. Whether the backend keeps a list of multicast
    /// addresses for us is said with it.
    pub fn attach(&mut self, link: Link<H>, multicast_control: bool) {
        debug_assert!(self.link.is_none(), "the former link was detached");
        self.epoch = self.epoch.wrapping_add(1);
        self.multicast_control = multicast_control;
        self.link = Some(link);
        self.flush();
    }

    /// Stops using the link, if there is one, and gives it back to be retired. What was on its
    /// transmit ring is lost.
    pub fn detach(&mut self) -> Option<Link<H>> {
        let link = self.link.take()?;
        let interrupted = link.shadow.in_flight() as u64;
        self.counters.interrupted = self.counters.interrupted.saturating_add(interrupted);
        self.fault = None;
        Some(link)
    }

    /// Whether a backend is there at the moment.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How the backend broke the protocol, if it did. Nothing is sent or received then, and the device
    /// is to be told.
    #[must_use]
    pub fn fault(&self) -> Option<&PeerFault> {
        self.fault.as_ref()
    }

    /// The event channels by which the backend says that something was received, and, second, that
    /// there is room to send. They may be one and the same.
    #[must_use]
    pub fn channels(&self) -> Option<[&Arc<H::Channel>; 2]> {
        self.link.as_ref().map(|link| [&link.rx.channel, &link.tx.channel])
    }

    /// How many requests, pages to receive into apart, the backend has not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.shadow.in_flight())
    }

    /// Shows the backend what was sent, and posts pages in place of those that were filled and given
    /// back; tells it where it asked to be told.
    pub fn flush(&mut self) {
        self.post();
        let Some(link) = self.link.as_mut().filter(|_| self.fault.is_none()) else { return };
        let tx = link.tx.ring.publish().is_needed();
        let rx = link.rx.ring.publish().is_needed();
        let one = Arc::ptr_eq(&link.tx.channel, &link.rx.channel);
        let (first, second) = (tx || (rx && one), rx && !one);
        // Where that fails the channel is no more, which the store says as well.
        if first {
            let _ = link.tx.channel.notify();
        }
        if second {
            let _ = link.rx.channel.notify();
        }
        let notified = u64::from(first).wrapping_add(u64::from(second));
        self.counters.notified = self.counters.notified.wrapping_add(notified);
    }

    /// Asks to be notified of the next packet and, where the caller waits for `room` to send, of
    /// room; listens for it. Says whether there is something to do already, in which case nobody may
    /// sleep.
    pub fn arm(&mut self, room: bool) -> bool {
        let Some(link) = self.link.as_mut().filter(|_| self.fault.is_none()) else { return false };
        for channel in [&link.rx.channel, &link.tx.channel] {
            channel.take();
            channel.unmask();
        }
        // A lie about the index is work, too: it is found when the responses are taken.
        let mut more = link.rx.ring.rearm().map_or(true, Recheck::is_more);
        if room {
            more |= link.tx.ring.rearm().map_or(true, Recheck::is_more);
        }
        more
    }

    /// Ends the connection, as far as this queue goes: the backend broke the protocol.
    pub(crate) fn break_off(&mut self, fault: PeerFault) {
        self.fault.get_or_insert(fault);
    }
}
