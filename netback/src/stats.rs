//! What a queue counts.
//!
//! One thread counts and any thread reads: a count is a relaxed load and a store, never a locked
//! operation. A snapshot is taken while counting goes on, so its numbers may be a few packets apart
//! from each other. Tx and Rx are the frontend's words. Units: packets, bytes, as they crossed the ring.

use std::collections::BTreeMap;

use ring::Counter;
use ring::packet::Malformed;
use ring::packet::transport::NoChecksum;
use ring::wire::netif::chain::Dropped;
use serde::{Deserialize, Serialize};

/// Why a packet was lost while its device goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Loss {
    /// Tx: more slots than are taken.
    TooManySlots,
    /// Tx: the later pieces are larger than the whole.
    TooLarge,
    /// Either way: not even an Ethernet header.
    TooShort,
    /// Tx: a change of the multicast list with data, or one that there is no room for.
    Multicast,
    /// Tx: a page that could not be copied from.
    TxGrant,
    /// Tx: headers that cannot be followed, where something was to be done with them.
    Headers,
    /// Tx: a checksum to complete, or segments to cut, where there is no whole TCP or UDP.
    NoTransport,
    /// Tx: segments of another protocol than the packet is of, or too small ones.
    Segments,
    /// Tx: a checksum to complete where the packet has none.
    ChecksumPlace,
    /// Tx: a source address, Ethernet or IP, that the guest may not use.
    Source,
    /// Tx: the port did not take it.
    Port,
    /// Rx: the guest did not post pages in time.
    NotPosted,
    /// Rx: a page that could not be copied to. The guest is told.
    RxGrant,
    /// Rx: more than the frontend takes in one packet.
    Unfit,
    /// Rx: what the port says of it cannot be.
    PortHeader,
    /// Rx: no memory for its segments.
    NoMemory,
    /// Rx: segments of what is in a tunnel, which neither frontends cut nor we.
    Tunnel,
    /// Either way: the process before this one was killed while it answered it.
    Interrupted,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::TooManySlots,
        Self::TooLarge,
        Self::TooShort,
        Self::Multicast,
        Self::TxGrant,
        Self::Headers,
        Self::NoTransport,
        Self::Segments,
        Self::ChecksumPlace,
        Self::Source,
        Self::Port,
        Self::NotPosted,
        Self::RxGrant,
        Self::Unfit,
        Self::PortHeader,
        Self::NoMemory,
        Self::Tunnel,
        Self::Interrupted,
    ];

    /// A short, constant name, to count by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooManySlots => "too_many_slots",
            Self::TooLarge => "too_large",
            Self::TooShort => "too_short",
            Self::Multicast => "multicast",
            Self::TxGrant => "tx_grant",
            Self::Headers => "headers",
            Self::NoTransport => "no_transport",
            Self::Segments => "segments",
            Self::ChecksumPlace => "checksum_place",
            Self::Source => "source",
            Self::Port => "port",
            Self::NotPosted => "not_posted",
            Self::RxGrant => "rx_grant",
            Self::Unfit => "unfit",
            Self::PortHeader => "port_header",
            Self::NoMemory => "no_memory",
            Self::Tunnel => "tunnel",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<Dropped> for Loss {
    fn from(dropped: Dropped) -> Self {
        match dropped {
            Dropped::TooManySlots { .. } => Self::TooManySlots,
            Dropped::TooShort { .. } => Self::TooShort,
            Dropped::MulticastData { .. } => Self::Multicast,
            _ => Self::TooLarge,
        }
    }
}

impl From<Malformed> for Loss {
    fn from(_: Malformed) -> Self {
        Self::Headers
    }
}

impl From<NoChecksum> for Loss {
    fn from(none: NoChecksum) -> Self {
        match none {
            NoChecksum::NoTransport { .. } => Self::NoTransport,
            _ => Self::Headers,
        }
    }
}

macro_rules! counts {
    ($($name:ident: $meaning:literal,)*) => {
        /// One queue's counters. Aligned so that two queues never share a cache line.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Stats {
            $(pub(crate) $name: Counter,)*
            lost: [Counter; Loss::ALL.len()],
        }

        /// A queue's counters at one moment. Counts are since the queue began, except where they say
        /// "now".
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[non_exhaustive]
        #[serde(default)]
        pub struct Snapshot {
            $(#[doc = concat!($meaning, ".")] pub $name: u64,)*
            /// Packets lost, by reason; none that is zero.
            pub lost: BTreeMap<String, u64>,
        }

        impl Stats {
            fn counted(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* lost: BTreeMap::new() }
            }
        }

        impl Snapshot {
            /// Adds another queue's numbers, or an earlier connection's, to these.
            pub fn merge(&mut self, other: &Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
                for (name, count) in &other.lost {
                    let mine = self.lost.entry(name.clone()).or_default();
                    *mine = mine.saturating_add(*count);
                }
            }
        }
    };
}

counts! {
    tx_packets: "Packets that the guest sent and the port took",
    tx_bytes: "Bytes of those",
    tx_gso: "Those among them that were to be cut into segments",
    tx_held: "Times that packets of the guest had to wait for its rate",
    tx_slots: "Slots of the guest's sending ring that were answered",
    tx_kept: "Those whose page the guest has stay mapped",
    tx_owed: "Slots of it that were taken and are not answered, now",
    rx_packets: "Packets given to the guest",
    rx_bytes: "Bytes of those",
    rx_gso: "Those among them that were to be cut into segments",
    rx_held: "Times that packets for the guest had to wait for its rate",
    rx_slots: "Slots of the guest's receiving ring that were answered",
    rx_kept: "Those whose page the guest has stay mapped",
    rx_starved: "Times that packets for the guest had to wait for pages",
    rx_stalls: "Times that the guest posted nothing for so long that its link was taken down",
    rx_cut: "Packets cut into segments here, since the guest does not do it",
    rx_summed: "Packets whose checksum was completed here, since the guest does not do it",
    rx_steered: "Packets for the guest that went to another queue, where it wants them",
    rx_unlisted: "Multicast packets kept from the guest, at its wish",
    rx_waiting: "Packets that wait for the guest, now",
    notified: "Notifications sent to the guest",
    not_notified: "Publications that the guest did not want to be notified of",
    events: "Events that came from the guest",
    empty_events: "Those among them that brought nothing",
    storms: "Times that events which brought nothing made us stop listening for a while",
    turns: "Rounds of the queue's loop that found something to do",
    polls_paid: "Those among them for which nobody had to wake us",
    sleeps: "Times that the queue slept",
}

impl Stats {
    /// Counts packets that were lost.
    #[inline]
    pub(crate) fn lose(&self, why: Loss, packets: u64) {
        if let Some(counter) =
            Loss::ALL.iter().position(|each| *each == why).and_then(|at| self.lost.get(at))
        {
            counter.add(packets);
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.counted();
        let lost = Loss::ALL.iter().zip(&self.lost);
        snapshot.lost = lost
            .map(|(why, counter)| (why.name().to_owned(), counter.get()))
            .filter(|(_, count)| *count > 0)
            .collect();
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_is_counted_under_its_own_name() {
        let stats = Stats::default();
        for why in Loss::ALL {
            stats.lose(why, 1);
        }
        let lost = stats.snapshot().lost;
        assert_eq!(lost.len(), Loss::ALL.len());
        assert!(lost.values().all(|count| *count == 1));
    }

    #[test]
    fn sums_add_every_count() {
        let stats = Stats::default();
        stats.tx_packets.add(2);
        stats.lose(Loss::Source, 3);
        let one = stats.snapshot();
        let mut sum = Snapshot::default();
        sum.merge(&one);
        sum.merge(&one);
        assert_eq!((sum.tx_packets, sum.lost.get("source")), (4, Some(&6)));
    }
}
