//! What is asked of a `netback` over its control socket, and what it answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::credit::Rate;
use crate::stats::Snapshot;

/// Slots in either ring: both have one page (io/netif.h).
const SLOTS: u32 = 256;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// What is served, to whom, in which state: a [`Device`].
    List,
    /// Where the rings' indexes are: [`Ring`]s.
    Rings,
    /// What was counted: [`Counters`].
    Counters,
    /// New rates, as `xl` writes them (`10Mb/s`); what is not named stays, `0` is no limit. Answers
    /// the [`Limits`] that hold.
    Limits {
        /// Of what the guest sends.
        #[serde(default)]
        tx: Option<String>,
        /// Of what it receives.
        #[serde(default)]
        rx: Option<String>,
    },
    /// Tell the guest that its link is up or down; without either, only answer which it is.
    Link {
        /// It is up.
        #[serde(default)]
        up: Option<bool>,
    },
    /// Leave the interface as it is for the next process, and end.
    Handover {},
    /// Take the interface away from the guest, and end.
    Detach {
        /// Without waiting for the guest to let go of it.
        #[serde(default)]
        force: bool,
    },
}

/// An interface that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Device {
    /// The daemon's process.
    pub pid: u32,
    /// The domain that it is.
    #[serde(default)]
    pub domain: u16,
    /// The device's number for the guest.
    pub devid: u32,
    /// The host's interface, once there is one.
    pub interface: Option<String>,
    /// The bridge that we put it on.
    pub bridge: Option<String>,
    /// The guest's address; `-` where it is not known.
    pub mac: String,
    /// The largest payload of a packet, where it was said.
    pub mtu: Option<u16>,
    /// The guest's name, or what it is waited for by.
    pub guest: String,
    /// The guest's number, if it is there.
    pub guest_id: Option<u16>,
    /// This end's state.
    pub state: String,
    /// The guest's end's state.
    pub guest_state: String,
    /// Whether the guest is told that its link is up.
    pub link: bool,
    /// Whether the guest posts no pages, so that the host's end of the link is down.
    pub stalled: bool,
    /// Queues in use.
    pub queues: u32,
    /// How often a guest has connected.
    pub connections: u64,
    /// How many of those were taken up from a process before this one, rings and all.
    #[serde(default)]
    pub resumed: u64,
    /// For how long the last of these was served by nobody, in milliseconds.
    #[serde(default)]
    pub pause_ms: Option<u64>,
    /// What the last connection was ended by, where the guest broke the protocol.
    pub fault: Option<String>,
    /// How often guests broke the protocol, by what they did.
    pub faults: BTreeMap<String, u64>,
    /// Lines that were kept out of the log, because a guest caused too many.
    #[serde(default)]
    pub unsaid: u64,
    /// How often a guest that came again too often was made to wait.
    #[serde(default)]
    pub delays: u64,
    /// The rates that hold.
    pub limits: Limits,
}

/// Rates in bytes a second; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of what the guest sends.
    pub tx: Option<u64>,
    /// Of what it receives.
    pub rx: Option<u64>,
}

impl Limits {
    /// Those of two rates.
    #[must_use]
    pub fn of(tx: Option<Rate>, rx: Option<Rate>) -> Self {
        Self { tx: tx.map(Rate::speed), rx: rx.map(Rate::speed) }
    }
}

/// Where one ring's indexes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ring {
    /// The queue's number.
    pub queue: u32,
    /// `tx`, on which the guest sends, or `rx`.
    pub ring: String,
    /// Slots in the ring.
    pub slots: u32,
    /// Slots taken since the guest connected.
    pub taken: u64,
    /// Slots answered since the guest connected.
    pub answered: u64,
    /// Slots taken and not answered.
    pub under_way: u64,
}

impl Ring {
    /// Queue `queue`'s two rings, as `now` has them.
    #[must_use]
    pub fn both(queue: u32, now: &Snapshot) -> [Self; 2] {
        [("tx", now.tx_slots, now.tx_owed), ("rx", now.rx_slots, 0)].map(
            |(ring, answered, under_way)| Self {
                queue,
                ring: ring.to_owned(),
                slots: SLOTS,
                taken: answered.saturating_add(under_way),
                answered,
                under_way,
            },
        )
    }
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counters {
    /// Of each queue, since the guest connected.
    pub queues: Vec<Snapshot>,
    /// Of all of them together.
    pub total: Snapshot,
    /// Of these and all earlier connections together, since the daemon was started.
    #[serde(default)]
    pub ever: Snapshot,
}

impl Counters {
    /// Of `queues`, which together are `total`; `ever` with all earlier connections.
    #[must_use]
    pub const fn new(queues: Vec<Snapshot>, total: Snapshot, ever: Snapshot) -> Self {
        Self { queues, total, ever }
    }
}
