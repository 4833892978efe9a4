//! What a transmit ring's slots hold: requests, and extras between them; and the responses.
//!
//! Before it: a slot's bytes, copied out. After it: whoever follows the chain. The frontend wrote
//! every field and none is checked here.
//!
//! ```text
//!  0           4      6      8    10     12
//!  +-----------+------+------+----+------+      +----+--------+
//!  | gref      |offset|flags | id | size |      | id | status |
//!  +-----------+------+------+----+------+      +----+--------+
//! ```
//!
//! Source: `netif_tx_request`, `netif_tx_response`, `NETTXF_*` in io/netif.h (RELEASE-4.17).

use hypervisor::GrantRef;

use super::Status;
use super::extra::Extra;
use crate::wire::{bytes_at, put_at};

/// A slot, as yet read as neither a request nor an extra.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(pub [u8; Self::SIZE]);

impl Slot {
    /// Bytes of one.
    pub const SIZE: usize = 12;

    /// As a request.
    #[inline]
    #[must_use]
    pub fn request(&self) -> Request {
        Request::decode(&self.0)
    }

    /// As an extra.
    #[inline]
    #[must_use]
    pub fn extra(&self) -> Extra {
        Extra::decode(&bytes_at(&self.0, 0))
    }
}

impl From<Request> for Slot {
    #[inline]
    fn from(request: Request) -> Self {
        Self(request.encode())
    }
}

impl From<Extra> for Slot {
    /// The four bytes that an extra leaves of the slot are zero.
    #[inline]
    fn from(extra: Extra) -> Self {
        let mut slot = [0; Self::SIZE];
        put_at(&mut slot, 0, extra.encode());
        Self(slot)
    }
}

/// Marks of a request (`NETTXF_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Flags(pub u16);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// `NETTXF_csum_blank`: the transport checksum holds the pseudo-header's sum only.
    pub const CSUM_BLANK: Self = Self(1 << 0);
    /// `NETTXF_data_validated`: the transport checksum was found right, or need not be looked at.
    pub const DATA_VALIDATED: Self = Self(1 << 1);
    /// `NETTXF_more_data`: the packet goes on in the next request.
    pub const MORE_DATA: Self = Self(1 << 2);
    /// `NETTXF_extra_info`: an extra follows. Means so on the first request of a packet only.
    pub const EXTRA_INFO: Self = Self(1 << 3);

    /// Whether all of `other` are among these.
    #[inline]
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One piece of a packet to send (`netif_tx_request`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The page.
    pub gref: GrantRef,
    /// Where in the page the piece begins.
    pub offset: u16,
    /// Marks.
    pub flags: Flags,
    /// The frontend's private value, to be echoed in the response.
    pub id: u16,
    /// How long the piece is; in a packet's first request, how long the packet is.
    pub size: u16,
}

impl Request {
    /// Reads one.
    #[inline]
    #[must_use]
    pub fn decode(slot: &[u8; Slot::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *slot;
        Self {
            gref: GrantRef(u32::from_le_bytes([a, b, c, d])),
            offset: u16::from_le_bytes([e, f]),
            flags: Flags(u16::from_le_bytes([g, h])),
            id: u16::from_le_bytes([i, j]),
            size: u16::from_le_bytes([k, l]),
        }
    }

    /// Writes one.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; Slot::SIZE] {
        let [a, b, c, d] = self.gref.0.to_le_bytes();
        let [e, f] = self.offset.to_le_bytes();
        let [g, h] = self.flags.0.to_le_bytes();
        let [i, j] = self.id.to_le_bytes();
        let [k, l] = self.size.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

/// The answer to one slot (`netif_tx_response`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's. Says nothing where the status is [`Status::NULL`].
    pub id: u16,
    /// What came of it.
    pub status: Status,
}

impl Response {
    /// Bytes of one.
    pub const SIZE: usize = 4;

    /// The answer to an extra.
    pub const NULL: Self = Self { id: 0, status: Status::NULL };

    /// Reads one.
    #[inline]
    #[must_use]
    pub fn decode(answer: &[u8; Self::SIZE]) -> Self {
        let [a, b, c, d] = *answer;
        Self { id: u16::from_le_bytes([a, b]), status: Status(i16::from_le_bytes([c, d])) }
    }

    /// Writes one.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let [a, b] = self.id.to_le_bytes();
        let [c, d] = self.status.0.to_le_bytes();
        [a, b, c, d]
    }
}
