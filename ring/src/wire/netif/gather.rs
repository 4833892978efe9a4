//! A backend follows chains of transmit slots and finds the packets in them.
//!
//! Before it: slots, in the order in which they were taken. After it: whoever copies the pieces, and
//! answers each slot.
//!
//! ```text
//!  first request   extras           more requests
//!  +-------------+ +-----+ +------+ +------+ +------+
//!  | size = all  | | GSO | | hash | | size | | size |      the first piece is what the sizes of the
//!  | extra_info  | | MORE| |      | | more | |      |      later ones leave of the first's
//!  | more_data   | |     | |      | |      | |      |
//!  +-------------+ +-----+ +------+ +------+ +------+
//! ```
//!
//! Pieces may be of any size, zero included, wherever the headers end (advisories 423, 432, 448):
//! the packet is to be copied as a whole before anything in it is looked at.
//!
//! Source: "Guest transmit" in io/netif.h (RELEASE-4.17); limits as in Linux's xen-netback (v6.1),
//! which takes so many slots after the first.

use hypervisor::{GrantRef, PAGE_SIZE};

use super::chain::{Checksum, Dropped, Extras, Fault, Multicast, Offload};
use super::tx::{Flags, Request, Response, Slot};
use super::{ETHERNET_HEADER, SLOTS_MIN, Status};

/// Data slots after the first that a packet may have.
pub const MOST_AFTER: usize = SLOTS_MIN;

/// Data slots after the first with which a chain is read to its end, to be dropped.
pub const FATAL_AFTER: usize = 20;

/// Extras that a chain may have: each of the known types once.
const MOST_EXTRAS: usize = 5;

/// A chain that is being followed.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    chain: Option<Chain>,
    /// Whether the next slot is an extra.
    extra: bool,
}

/// A chain that was followed to its end: each of its slots is to be answered, whatever it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    first: Request,
    extras: Extras,
    /// The first two bytes of each extra: its type and marks.
    heads: [u16; MOST_EXTRAS],
    after: [Request; FATAL_AFTER],
    count: usize,
    /// Bytes of the pieces after the first.
    bytes_after: usize,
}

/// What a chain turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<'a> {
    /// A packet to send.
    Packet(Packet<'a>),
    /// A change of the multicast list.
    Multicast(Multicast),
    /// Nothing that could be used. Its slots are answered with [`Status::ERROR`].
    Dropped(Dropped),
}

/// A packet to send, still in its sender's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// Its size.
    pub size: u16,
    /// What is said of it.
    pub offload: Offload,
    first: Piece,
    after: &'a [Request],
}

/// A part of a packet within one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The page.
    pub gref: GrantRef,
    /// Where in the page it begins.
    pub offset: u16,
    /// How long it is.
    pub size: u16,
}

impl Gather {
    /// Between two packets.
    #[must_use]
    pub const fn new() -> Self {
        Self { chain: None, extra: false }
    }

    /// Follows one more slot; gives the chain of which it is the last one.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the frontend is not to be believed any more.
    #[inline]
    pub fn feed(&mut self, slot: &Slot) -> Result<Option<Chain>, Fault> {
        let more = match &mut self.chain {
            None => {
                let first = slot.request();
                self.extra = first.flags.has(Flags::EXTRA_INFO);
                self.chain = Some(Chain::new(first));
                first.flags.has(Flags::MORE_DATA)
            }
            Some(chain) if self.extra => {
                let extra = slot.extra();
                let at = chain.extras.count();
                chain.extras.take(&extra)?;
                if let (Some(head), [a, b, ..]) = (chain.heads.get_mut(at), slot.0) {
                    *head = u16::from_le_bytes([a, b]);
                }
                self.extra = extra.more;
                chain.first.flags.has(Flags::MORE_DATA)
            }
            Some(chain) => chain.push(slot.request())?,
        };
        if more || self.extra {
            return Ok(None);
        }
        let Some(chain) = self.chain.take() else { return Ok(None) };
        chain.check_first()?;
        Ok(Some(chain))
    }

    /// Says that the ring has no more slots.
    ///
    /// # Errors
    ///
    /// [`Fault::Cut`] where that is in the middle of a packet: a frontend publishes whole ones.
    pub fn end(&self) -> Result<(), Fault> {
        match &self.chain {
            None => Ok(()),
            Some(chain) => Err(Fault::Cut { slots: chain.slots() }),
        }
    }
}

impl Chain {
    const NONE: Request =
        Request { gref: GrantRef(0), offset: 0, flags: Flags::NONE, id: 0, size: 0 };

    #[inline]
    fn new(first: Request) -> Self {
        let after = [Self::NONE; FATAL_AFTER];
        let (extras, heads) = (Extras::default(), [0; MOST_EXTRAS]);
        Self { first, extras, heads, after, count: 0, bytes_after: 0 }
    }

    /// Takes a request after the first in, and says whether another follows.
    #[inline]
    fn push(&mut self, request: Request) -> Result<bool, Fault> {
        let most = FATAL_AFTER.saturating_add(1);
        let room = self.after.get_mut(self.count).ok_or(Fault::SlotCount { most })?;
        check_piece(request.offset, request.size)?;
        *room = request;
        self.count = self.count.saturating_add(1);
        self.bytes_after = self.bytes_after.saturating_add(usize::from(request.size));
        Ok(request.flags.has(Flags::MORE_DATA))
    }

    /// The first piece, whose size is known only when the others' are, lies within its page.
    #[inline]
    fn check_first(&self) -> Result<(), Fault> {
        match self.first_size() {
            Some(size) if self.extras.multicast.is_none() => check_piece(self.first.offset, size),
            _ => Ok(()),
        }
    }

    #[inline]
    fn first_size(&self) -> Option<u16> {
        let after = u16::try_from(self.bytes_after).ok()?;
        self.first.size.checked_sub(after)
    }

    /// How many slots it has on the ring.
    #[inline]
    #[must_use]
    pub fn slots(&self) -> usize {
        self.count.saturating_add(self.extras.count()).saturating_add(1)
    }

    /// What it is.
    #[inline]
    #[must_use]
    pub fn content(&self) -> Content<'_> {
        if let Some(multicast) = self.extras.multicast {
            if self.count > 0 {
                return Content::Dropped(Dropped::MulticastData { slots: self.count });
            }
            return Content::Multicast(multicast);
        }
        match self.packet() {
            Ok(packet) => Content::Packet(packet),
            Err(dropped) => Content::Dropped(dropped),
        }
    }

    #[inline]
    fn packet(&self) -> Result<Packet<'_>, Dropped> {
        if self.count > MOST_AFTER {
            let [slots, most] = [self.count, MOST_AFTER].map(|after| after.saturating_add(1));
            return Err(Dropped::TooManySlots { slots, most });
        }
        let size = self.first.size;
        let first =
            self.first_size().ok_or(Dropped::TooLarge { pieces: self.bytes_after, size })?;
        if usize::from(size) < ETHERNET_HEADER {
            return Err(Dropped::TooShort { size: usize::from(size) });
        }
        let checksum = if self.first.flags.has(Flags::CSUM_BLANK) {
            Checksum::Blank
        } else if self.first.flags.has(Flags::DATA_VALIDATED) {
            Checksum::Validated
        } else {
            Checksum::Unchecked
        };
        Ok(Packet {
            size,
            offload: Offload { checksum, gso: self.extras.gso, hash: self.extras.hash },
            first: Piece { gref: self.first.gref, offset: self.first.offset, size: first },
            after: self.after.get(..self.count).unwrap_or_default(),
        })
    }

    /// The answers to its slots, in the order in which they are on the ring: `status` to each
    /// request, and [`Status::NULL`] to each extra. That leaves the extra's type and marks as they were, and with
    /// a request's marks the chain can be followed even when it is answered and not yet published.
    #[inline]
    pub fn answers(&self, status: Status) -> impl Iterator<Item = Response> + '_ {
        let to = move |request: &Request| Response { id: request.id, status };
        let after = self.after.get(..self.count).unwrap_or_default();
        let heads = self.heads.get(..self.extras.count()).unwrap_or_default();
        let null = |head: &u16| Response { id: *head, status: Status::NULL };
        core::iter::once(to(&self.first)).chain(heads.iter().map(null)).chain(after.iter().map(to))
    }
}

impl Packet<'_> {
    /// Its pieces in order, without those that have nothing in them.
    #[inline]
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let after = self.after.iter().map(|request| Piece {
            gref: request.gref,
            offset: request.offset,
            size: request.size,
        });
        core::iter::once(self.first).chain(after).filter(|piece| piece.size > 0)
    }
}

/// A piece lies within its page.
#[inline]
pub(super) fn check_piece(offset: u16, size: u16) -> Result<(), Fault> {
    if usize::from(offset).saturating_add(usize::from(size)) > PAGE_SIZE {
        return Err(Fault::CrossesPage { offset, size });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
