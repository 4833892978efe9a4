//! A backend fits a packet into the pages that a frontend posted.
//!
//! Before it: a packet that goes to the guest, and what the guest takes. After it: whoever takes as
//! many requests off the ring as are needed, copies, and responds to each in its place.
//!
//! ```text
//!  response        extras           more responses
//!  +-------------+ +-----+ +------+ +------+ +------+
//!  | status =    | | GSO | | hash | | size | | size |      each piece has its own size, and is as
//!  | first piece | | MORE| |      | | more | |      |      large as its page leaves room
//!  +-------------+ +-----+ +------+ +------+ +------+
//! ```
//!
//! Source: "Guest receive" in io/netif.h (RELEASE-4.17). Headroom, which is younger, is left in
//! every page, and said in each response's offset as well as in the extra, so that a frontend finds
//! the data whichever it goes by.

use hypervisor::{GrantRef, PAGE_SIZE};

use super::chain::{Checksum, Offload};
use super::extra::{Extra, GsoProtocol, Kind};
use super::rx::{Flags, Request, Response, Slot};
use super::{ETHERNET_HEADER, MAX_RX_SIZE, RX_SLOTS_MOST};

/// What a frontend takes, as it said in the store.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Takes {
    /// `feature-sg`: packets of more than one page.
    pub sg: bool,
    /// `feature-gso-tcpv4`.
    pub gso_tcpv4: bool,
    /// `feature-gso-tcpv6`.
    pub gso_tcpv6: bool,
    /// It set hashing up on the control ring, and so takes the extra that says the hash.
    pub hash: bool,
    /// `xdp-headroom`: bytes to be left free in front of data.
    pub headroom: u16,
}

/// Why a packet cannot be given to this frontend as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// Not even an Ethernet header.
    #[error("a packet of {size} bytes")]
    TooShort {
        /// Bytes it has.
        size: usize,
    },
    /// It takes more pages than the frontend takes for one packet.
    #[error("a packet of {size} bytes in {slots} slots where {most} are the most")]
    TooLarge {
        /// Bytes it has.
        size: usize,
        /// Pages it would take.
        slots: usize,
        /// The most that there may be.
        most: usize,
    },
    /// It is to be cut into segments, by a frontend that cannot; so cut it before.
    #[error("a packet to be segmented, of GSO type {protocol}")]
    Segment {
        /// What is to be cut.
        protocol: u8,
    },
    /// No page has room beside so much headroom.
    #[error("headroom of {headroom} bytes")]
    Headroom {
        /// What is asked for.
        headroom: u16,
    },
}

/// How a packet lies in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fit {
    size: usize,
    offload: Offload,
    headroom: u16,
    data: usize,
}

/// What becomes of one posted page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// A part of the packet.
    Data {
        /// To be copied into the page.
        copy: Copy,
        /// To be said when that was done; [`Response::failed`] where it could not be.
        response: Response,
    },
    /// Nothing is copied; the slot holds an extra.
    Extra(Slot),
}

/// A part of a packet, to be copied into a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Where in the packet it begins.
    pub from: usize,
    /// The page.
    pub gref: GrantRef,
    /// Where in the page it goes.
    pub offset: u16,
    /// How long it is.
    pub size: u16,
}

impl Fit {
    /// A packet of `size` bytes, of which `offload` is to be said, for a frontend that takes
    /// `takes`. A hash that it does not take is left out.
    ///
    /// # Errors
    ///
    /// [`Unfit`].
    #[inline]
    pub fn new(size: usize, offload: Offload, takes: &Takes) -> Result<Self, Unfit> {
        if size < ETHERNET_HEADER {
            return Err(Unfit::TooShort { size });
        }
        let headroom = takes.headroom;
        let room = PAGE_SIZE.saturating_sub(usize::from(headroom));
        let too_much = Unfit::Headroom { headroom };
        let data = size.checked_add(room.saturating_sub(1)).and_then(|size| size.checked_div(room));
        let data = data.ok_or(too_much)?;
        let most = if takes.sg { RX_SLOTS_MOST } else { 1 };
        if data > most || size > MAX_RX_SIZE {
            return Err(Unfit::TooLarge { size, slots: data, most });
        }
        if let Some(gso) = offload.gso {
            let taken = match gso.protocol() {
                Some(GsoProtocol::TcpV4) => takes.gso_tcpv4,
                Some(GsoProtocol::TcpV6) => takes.gso_tcpv6,
                None => false,
            };
            if !taken {
                return Err(Unfit::Segment { protocol: gso.protocol });
            }
        }
        let hash = offload.hash.filter(|_| takes.hash);
        Ok(Self { size, offload: Offload { hash, ..offload }, headroom, data })
    }

    /// Whether a packet of `size` bytes has room in as many pages as a frontend takes that takes `takes`.
    #[inline]
    #[must_use]
    pub fn has_room(size: usize, takes: &Takes) -> bool {
        let room = PAGE_SIZE.saturating_sub(usize::from(takes.headroom));
        let most = if takes.sg { RX_SLOTS_MOST } else { 1 };
        size <= MAX_RX_SIZE.min(room.saturating_mul(most))
    }

    /// How many posted pages it takes, those under extras included.
    #[inline]
    #[must_use]
    pub fn slots(&self) -> usize {
        self.data.saturating_add(self.extra_slots())
    }

    #[inline]
    fn extra_slots(&self) -> usize {
        self.offload.extras().saturating_add(usize::from(self.headroom > 0))
    }

    /// What becomes of the page of `request`, which is the `n`th that this packet takes, from 0.
    #[inline]
    #[must_use]
    pub fn place(&self, n: usize, request: Request) -> Placed {
        let extras = self.extra_slots();
        if let Some(extra) = n.checked_sub(1).and_then(|n| self.extras().nth(n)) {
            return Placed::Extra(extra.into());
        }
        let piece = if n == 0 { 0 } else { n.saturating_sub(extras) };
        let room = PAGE_SIZE.saturating_sub(usize::from(self.headroom));
        let from = piece.saturating_mul(room).min(self.size);
        let left = self.size.saturating_sub(from);
        // At most a page, which fits either type.
        let size = u16::try_from(left.min(room)).unwrap_or(0);
        let mut flags = if left > room { Flags::MORE_DATA } else { Flags::NONE };
        if n == 0 {
            flags = flags.with(match self.offload.checksum {
                Checksum::Unchecked => Flags::NONE,
                Checksum::Validated => Flags::DATA_VALIDATED,
                // A blank checksum was left so by the sender itself, so the data is right.
                Checksum::Blank => Flags::CSUM_BLANK.with(Flags::DATA_VALIDATED),
            });
            if extras > 0 {
                flags = flags.with(Flags::EXTRA_INFO);
            }
        }
        let status = i16::try_from(size).unwrap_or(0);
        Placed::Data {
            copy: Copy { from, gref: request.gref, offset: self.headroom, size },
            response: Response { id: request.id, offset: self.headroom, flags, status },
        }
    }

    /// The extras in order, each but the last with another after it.
    #[inline]
    fn extras(&self) -> impl Iterator<Item = Extra> + use<> {
        let headroom = Some(self.headroom).filter(|headroom| *headroom > 0);
        let kinds = [
            self.offload.gso.map(Kind::Gso),
            headroom.map(|headroom| Kind::Xdp { headroom }),
            self.offload.hash.map(Kind::Hash),
        ];
        let last = self.extra_slots().saturating_sub(1);
        let extra = move |(n, kind)| Extra { more: n < last, kind };
        kinds.into_iter().flatten().enumerate().map(extra)
    }
}
