//! What a receive ring's slots hold: requests, which are empty pages; responses, which say what
//! was put into them; and extras between the responses.
//!
//! Before it: a slot's bytes, copied out. After it: whoever fits packets into pages, or follows the
//! chain that came. The peer wrote every field and none is checked here.
//!
//! ```text
//!  0    2    4           8      0    2      4      6      8
//!  +----+----+-----------+      +----+------+------+------+
//!  | id | pad| gref      |      | id |offset|flags |status|
//!  +----+----+-----------+      +----+------+------+------+
//! ```
//!
//! Source: `netif_rx_request`, `netif_rx_response`, `NETRXF_*` in io/netif.h (RELEASE-4.17).

use hypervisor::GrantRef;

use super::Status;
use super::extra::Extra;

/// An empty page for the backend to fill (`netif_rx_request`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The frontend's private value, to be echoed in the response.
    pub id: u16,
    /// The page.
    pub gref: GrantRef,
}

impl Request {
    /// Reads one.
    #[inline]
    #[must_use]
    pub fn decode(slot: &[u8; Slot::SIZE]) -> Self {
        let [a, b, _, _, c, d, e, f] = *slot;
        Self { id: u16::from_le_bytes([a, b]), gref: GrantRef(u32::from_le_bytes([c, d, e, f])) }
    }

    /// Writes one, its padding zero.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; Slot::SIZE] {
        let [a, b] = self.id.to_le_bytes();
        let [c, d, e, f] = self.gref.0.to_le_bytes();
        [a, b, 0, 0, c, d, e, f]
    }
}

/// A response's slot, as yet read as neither a response nor an extra.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(pub [u8; Self::SIZE]);

impl Slot {
    /// Bytes of one.
    pub const SIZE: usize = 8;

    /// As a response.
    #[inline]
    #[must_use]
    pub fn response(&self) -> Response {
        Response::decode(&self.0)
    }

    /// As an extra.
    #[inline]
    #[must_use]
    pub fn extra(&self) -> Extra {
        Extra::decode(&self.0)
    }
}

impl From<Response> for Slot {
    #[inline]
    fn from(response: Response) -> Self {
        Self(response.encode())
    }
}

impl From<Extra> for Slot {
    #[inline]
    fn from(extra: Extra) -> Self {
        Self(extra.encode())
    }
}

/// Marks of a response (`NETRXF_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Flags(pub u16);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// `NETRXF_data_validated`: the transport checksum was found right, or need not be looked at.
    pub const DATA_VALIDATED: Self = Self(1 << 0);
    /// `NETRXF_csum_blank`: the transport checksum holds the pseudo-header's sum only.
    pub const CSUM_BLANK: Self = Self(1 << 1);
    /// `NETRXF_more_data`: the packet goes on in the next response.
    pub const MORE_DATA: Self = Self(1 << 2);
    /// `NETRXF_extra_info`: an extra follows. Means so on the first response of a packet only.
    pub const EXTRA_INFO: Self = Self(1 << 3);
    /// `NETRXF_gso_prefix`: deprecated; the response is a mark in front of the packet.
    pub const GSO_PREFIX: Self = Self(1 << 4);

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

/// What was put into one page (`netif_rx_response`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's.
    pub id: u16,
    /// Where in the page the piece begins.
    pub offset: u16,
    /// Marks.
    pub flags: Flags,
    /// How long the piece is, where it is not negative; else a [`Status`].
    pub status: i16,
}

impl Response {
    /// That nothing could be put into the page of `request`; the packet is lost.
    #[inline]
    #[must_use]
    pub const fn failed(request: Request, flags: Flags) -> Self {
        Self { id: request.id, offset: 0, flags, status: Status::ERROR.0 }
    }

    /// Reads one.
    #[inline]
    #[must_use]
    pub fn decode(answer: &[u8; Slot::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h] = *answer;
        Self {
            id: u16::from_le_bytes([a, b]),
            offset: u16::from_le_bytes([c, d]),
            flags: Flags(u16::from_le_bytes([e, f])),
            status: i16::from_le_bytes([g, h]),
        }
    }

    /// Writes one.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; Slot::SIZE] {
        let [a, b] = self.id.to_le_bytes();
        let [c, d] = self.offset.to_le_bytes();
        let [e, f] = self.flags.0.to_le_bytes();
        let [g, h] = self.status.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}
