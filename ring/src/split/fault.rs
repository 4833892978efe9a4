//! What a driver can do wrong on a split virtqueue.

use hypervisor::{Peer, PeerFault};

/// A rule of the queue that the driver, or who set the queue up, broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A queue cannot have so many entries.
    #[error("a queue of {size} entries, which is no power of two from 1 to 32768")]
    Size {
        /// Entries asked for.
        size: u32,
    },
    /// A part of the queue has not the bytes that its size needs.
    #[error("{part} of {have} bytes for a queue of {size} entries")]
    Short {
        /// Which part.
        part: &'static str,
        /// Bytes there are.
        have: usize,
        /// Entries of the queue.
        size: u16,
    },
    /// The available index went back, or past the entries that were free.
    #[error("available index {index} with {taken} taken, {used} of them used, on {size} entries")]
    AvailableIndex {
        /// What the driver wrote.
        index: u16,
        /// Heads taken so far.
        taken: u16,
        /// Heads given back so far.
        used: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// The available ring names a descriptor that there is not.
    #[error("head {head} on {size} entries")]
    Head {
        /// What the driver wrote.
        head: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A head was made available that is with the device already.
    #[error("head {head} is in flight already")]
    HeadTwice {
        /// What the driver wrote.
        head: u16,
    },
    /// A descriptor's successor lies outside its table.
    #[error("next descriptor {next} in a table of {size}")]
    Next {
        /// What the driver wrote.
        next: u16,
        /// Descriptors in the table.
        size: u32,
    },
    /// A chain is longer than there can be, or goes round in a circle.
    #[error("a chain of more than {most} descriptors, or a loop")]
    Loop {
        /// The most that there may be.
        most: u32,
    },
    /// An indirect table inside another, or one with a successor.
    #[error("indirect descriptor with flags {flags:#x} where there can be none")]
    Indirect {
        /// The descriptor's flags.
        flags: u16,
    },
    /// An indirect table of no descriptors, or of a part of one.
    #[error("an indirect table of {len} bytes")]
    IndirectLength {
        /// Bytes of the table.
        len: u32,
    },
    /// Something lies where the guest has no memory.
    #[error("{len} bytes at {at:#x}, outside the guest's memory")]
    Outside {
        /// The guest's address.
        at: u64,
        /// How many bytes.
        len: u64,
    },
    /// Something for the device to read behind something for it to write.
    #[error("a readable descriptor behind a writable one")]
    Order,
    /// The chain has not what every request must have.
    #[error("a request with {what}")]
    Request {
        /// What is missing or too short.
        what: &'static str,
    },
}

impl Fault {
    /// A short, constant name, to count by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Size { .. } => "queue_size",
            Self::Short { .. } => "queue_too_short",
            Self::AvailableIndex { .. } => "available_index",
            Self::Head { .. } => "descriptor_head",
            Self::HeadTwice { .. } => "descriptor_head_twice",
            Self::Next { .. } => "descriptor_next",
            Self::Loop { .. } => "descriptor_loop",
            Self::Indirect { .. } => "indirect_descriptor",
            Self::IndirectLength { .. } => "indirect_length",
            Self::Outside { .. } => "outside_memory",
            Self::Order => "descriptor_order",
            Self::Request { .. } => "request_shape",
        }
    }

    /// The same as the machine's doing.
    #[must_use]
    pub fn by(self, peer: Peer) -> PeerFault {
        PeerFault::new(peer, self.name(), self)
    }
}

impl From<hypervisor::memory::Outside> for Fault {
    fn from(outside: hypervisor::memory::Outside) -> Self {
        Self::Outside { at: outside.at, len: outside.len }
    }
}
