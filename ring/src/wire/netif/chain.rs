//! What the chains of both rings have in common: what is said of a packet as a whole, which extras
//! may stand between the first and the second link, and what a peer can do wrong with all that.
//!
//! Source: "Guest transmit", "Guest receive" and "Extra Info" in io/netif.h (RELEASE-4.17). Where it
//! leaves open what happens to a chain that breaks a rule, as Linux's xen-netback does (v6.1): what
//! a buggy frontend was seen to do loses the packet, what none does loses the device.

use hypervisor::{DomId, PeerFault};

use super::extra::{Extra, Gso, Hash, Kind};

/// What is said of a packet as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offload {
    /// Its transport checksum.
    pub checksum: Checksum,
    /// How to cut it into segments. Such a packet's checksum is blank, whether or not that is said.
    pub gso: Option<Gso>,
    /// The hash of its flow.
    pub hash: Option<Hash>,
}

impl Offload {
    /// How many extras it takes to say so.
    #[inline]
    #[must_use]
    pub fn extras(&self) -> usize {
        usize::from(self.gso.is_some()).saturating_add(usize::from(self.hash.is_some()))
    }
}

/// What is said of a packet's transport checksum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Checksum {
    /// Nothing: it is there, and may be wrong.
    #[default]
    Unchecked,
    /// It is there and right.
    Validated,
    /// It holds the pseudo-header's sum only; whoever takes the packet further completes it.
    Blank,
}

/// A change of the list of multicast addresses that a frontend wants packets for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Multicast {
    /// Let packets to this address through.
    Add([u8; 6]),
    /// Do not, any more.
    Delete([u8; 6]),
}

/// The extras of one chain: each kind at most once, so that a chain has an end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Extras {
    /// How to cut the packet into segments.
    pub gso: Option<Gso>,
    /// The hash of its flow.
    pub hash: Option<Hash>,
    /// Bytes free in front of it.
    pub headroom: Option<u16>,
    /// That this is no packet.
    pub multicast: Option<Multicast>,
    /// Bits of the types that were there.
    seen: u8,
}

impl Extras {
    /// Takes one more in.
    ///
    /// # Errors
    ///
    /// [`Fault::ExtraType`], [`Fault::ExtraTwice`], [`Fault::GsoType`], [`Fault::GsoSize`].
    #[inline]
    pub fn take(&mut self, extra: &Extra) -> Result<(), Fault> {
        let number = extra.number();
        match extra.kind {
            Kind::Unknown(_) => return Err(Fault::ExtraType { number }),
            Kind::Gso(gso) if gso.protocol().is_none() => {
                return Err(Fault::GsoType { protocol: gso.protocol });
            }
            Kind::Gso(Gso { size: 0, .. }) => return Err(Fault::GsoSize),
            Kind::Gso(gso) => self.gso = Some(gso),
            Kind::Hash(hash) => self.hash = Some(hash),
            Kind::Xdp { headroom } => self.headroom = Some(headroom),
            Kind::McastAdd(address) => self.multicast = Some(Multicast::Add(address)),
            Kind::McastDel(address) => self.multicast = Some(Multicast::Delete(address)),
        }
        // The known types are 1 to 5.
        let bit = 1_u8.checked_shl(u32::from(number)).unwrap_or(0);
        if self.seen & bit != 0 {
            return Err(Fault::ExtraTwice { number });
        }
        self.seen |= bit;
        Ok(())
    }

    /// How many there were, and so how many slots they took.
    #[inline]
    #[must_use]
    pub const fn count(&self) -> usize {
        self.seen.count_ones() as usize
    }
}

/// A rule of chains that the peer broke. It is not to be believed any more: where a packet begins
/// and ends on its ring cannot be known, or it means harm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A chain goes on where the ring, as published, does not.
    #[error("a packet of which {slots} slots are on the ring and the rest is not")]
    Cut {
        /// Slots of it that are there.
        slots: usize,
    },
    /// A chain with more data slots than any implementation ever made.
    #[error("a packet of more than {most} slots")]
    SlotCount {
        /// The most that are read to the end.
        most: usize,
    },
    /// A piece that does not lie within its page.
    #[error("a piece of {size} bytes at offset {offset} of a page")]
    CrossesPage {
        /// Where it begins.
        offset: u16,
        /// How long it is.
        size: u16,
    },
    /// An extra of a type that there is not.
    #[error("extra of type {number}")]
    ExtraType {
        /// The type.
        number: u8,
    },
    /// The same type of extra twice in one chain.
    #[error("extra of type {number} twice in one packet")]
    ExtraTwice {
        /// The type.
        number: u8,
    },
    /// Segments of a protocol that there is not.
    #[error("GSO type {protocol}")]
    GsoType {
        /// The protocol's number.
        protocol: u8,
    },
    /// Segments without payload.
    #[error("GSO size 0")]
    GsoSize,
}

impl Fault {
    /// A short, constant name, to count by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "packet_cut",
            Self::SlotCount { .. } => "slot_count",
            Self::CrossesPage { .. } => "crosses_page",
            Self::ExtraType { .. } => "extra_type",
            Self::ExtraTwice { .. } => "extra_twice",
            Self::GsoType { .. } => "gso_type",
            Self::GsoSize => "gso_size",
        }
    }

    /// The same as `domain`'s doing.
    #[must_use]
    pub fn by(self, domain: DomId) -> PeerFault {
        PeerFault::new(domain, self.name(), self)
    }
}

/// Why a packet is lost while its device goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Dropped {
    /// More data slots than are taken, and fewer than would be a fault.
    #[error("a packet of {slots} slots where {most} are the most")]
    TooManySlots {
        /// Slots it has.
        slots: usize,
        /// The most that are taken.
        most: usize,
    },
    /// The later pieces are together larger than the packet. A packet of 64 KiB or more looks like
    /// that, for its size does not fit its field.
    #[error("pieces of {pieces} bytes after the first in a packet of {size}")]
    TooLarge {
        /// Bytes of the pieces after the first.
        pieces: usize,
        /// Bytes that the packet is said to have.
        size: u16,
    },
    /// Not even an Ethernet header.
    #[error("a packet of {size} bytes")]
    TooShort {
        /// Bytes it has.
        size: usize,
    },
    /// More bytes than a packet can have.
    #[error("a packet of {size} bytes")]
    Oversized {
        /// Bytes it has.
        size: usize,
    },
    /// A change of the multicast list that has data, or that comes from a backend.
    #[error("a change of the multicast list with {slots} slots of data")]
    MulticastData {
        /// Slots after its first.
        slots: usize,
    },
    /// The backend says that it could not fill a page.
    #[error("status {status} in a packet received")]
    Failed {
        /// What it says.
        status: i16,
    },
}

impl Dropped {
    /// A short, constant name, to count by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::TooManySlots { .. } => "too_many_slots",
            Self::TooLarge { .. } => "too_large",
            Self::TooShort { .. } => "too_short",
            Self::Oversized { .. } => "oversized",
            Self::MulticastData { .. } => "multicast_data",
            Self::Failed { .. } => "failed",
        }
    }
}
