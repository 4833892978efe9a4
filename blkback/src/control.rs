//! What is asked of a `blkback` over its control socket, and what it answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::Snapshot;

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
    /// A new size in bytes; without one, look how large the image is now.
    Resize {
        /// In bytes.
        size: Option<u64>,
    },
    /// New limits; what is not named stays, 0 is no limit. Answers the [`Limits`] that hold.
    Limits {
        /// Requests a second.
        iops: Option<u64>,
        /// Bytes a second.
        bytes: Option<u64>,
    },
    /// Try again what the image refused and is held, now; answers how many requests are: none where the image is dead and
    /// another process opens the one in its place.
    Resume,
    /// Answer what is under way, leave the disk as it is for the next process, and end. Refused where that
    /// reads other formats of the journal.
    Handover {
        /// Those that it reads; without one, it is the same program that goes on.
        #[serde(default)]
        formats: Option<Vec<u64>>,
    },
    /// Take the disk away from the guest, and end.
    Detach {
        /// Without waiting for the guest to let go of it.
        #[serde(default)]
        force: bool,
    },
}

/// A disk that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Device {
    /// The daemon's process.
    pub pid: u32,
    /// The domain that it is.
    #[serde(default)]
    pub domain: u16,
    /// The image's path, or the engine's name where there is no image.
    pub image: String,
    /// In bytes.
    pub size: u64,
    /// In bytes.
    pub sector_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether transfers go past the page cache.
    pub direct: bool,
    /// What carries requests to the image.
    pub engine: String,
    /// The disk's name for the guest.
    pub vdev: String,
    /// The guest's name, or what it is waited for by.
    pub guest: String,
    /// The guest's number, if it is there.
    pub guest_id: Option<u16>,
    /// This end's state.
    pub state: String,
    /// The guest's end's state.
    pub guest_state: String,
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
    /// Why flushes fail from now on, a positive `errno`: one failed before.
    pub lost: Option<i32>,
    /// Requests that the image refused and that are held, to be tried again.
    #[serde(default)]
    pub held: Option<Held>,
    /// The limits that hold.
    pub limits: Limits,
}

/// Requests that are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Held {
    /// How many.
    pub requests: u64,
    /// Why the last of them failed, a positive `errno`.
    pub errno: i32,
    /// The same in words.
    pub why: String,
}

impl Held {
    /// So many, of which the last failed with `errno`.
    #[must_use]
    pub fn new((requests, errno): (u64, i32)) -> Self {
        Self { requests, errno, why: std::io::Error::from_raw_os_error(errno).to_string() }
    }
}

/// Limits; `None` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Requests a second.
    pub iops: Option<u64>,
    /// Bytes a second.
    pub bytes: Option<u64>,
}

/// Where one ring's indexes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ring {
    /// The queue's number.
    pub queue: u32,
    /// Slots in the ring.
    pub slots: u32,
    /// Requests taken so far, as the ring counts them.
    pub taken: u32,
    /// Requests answered so far, as the ring counts them.
    pub answered: u32,
    /// Requests taken and not answered.
    pub under_way: u32,
}

impl Ring {
    /// Queue `queue`'s ring of `slots` slots, as `now` has it.
    #[must_use]
    pub fn new(queue: u32, slots: u32, now: &Snapshot) -> Self {
        let index = |count: u64| u32::try_from(count & u64::from(u32::MAX)).unwrap_or_default();
        let (taken, answered) = (index(now.taken), index(now.answered));
        Self { queue, slots, taken, answered, under_way: taken.wrapping_sub(answered) }
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
