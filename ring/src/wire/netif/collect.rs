//! A frontend follows chains of receive slots and finds the packets in its pages.
//!
//! Before it: slots, in the order in which they were taken. After it: whoever reads the pages.
//!
//! Which page a slot is about is told by its position on the ring, as frontends have always done,
//! for extras lie over the field that would name it; a piece says how far behind the chain's first
//! slot it is. The backend is not trusted: what it says of a piece is checked against the page, and
//! that the id it echoes is the page's is for whoever posted the page to check.
//!
//! Source: "Guest receive" in io/netif.h (RELEASE-4.17); limits as in Linux's xen-netfront (v6.1),
//! which takes one more slot than it must.

use super::chain::{Checksum, Dropped, Extras, Fault, Offload};
use super::gather::check_piece;
use super::rx::{Flags, Response, Slot};
use super::{ETHERNET_HEADER, MAX_RX_SIZE, SLOTS_MIN};

/// Data slots that a packet may have.
pub const MOST: usize = SLOTS_MIN + 1;

/// A chain that is being followed.
#[derive(Clone, Debug, Default)]
pub struct Collect {
    chain: Option<Arrival>,
    /// Whether the next slot is an extra.
    extra: bool,
}

/// A chain that was followed to its end: as many of the posted pages are the frontend's again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    first: Flags,
    extras: Extras,
    pieces: [Piece; MOST],
    count: usize,
    slots: usize,
    size: usize,
    failed: Option<i16>,
}

/// A part of a packet within one posted page.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Piece {
    /// How many slots it is behind the first one of the chain.
    pub slot: usize,
    /// The id that the backend echoes.
    pub id: u16,
    /// Where in the page it begins.
    pub offset: u16,
    /// How long it is.
    pub size: u16,
}

impl Collect {
    /// Between two packets.
    #[must_use]
    pub const fn new() -> Self {
        Self { chain: None, extra: false }
    }

    /// Follows one more slot; gives the chain of which it is the last one.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the backend is not to be believed any more.
    #[inline]
    pub fn feed(&mut self, slot: &Slot) -> Result<Option<Arrival>, Fault> {
        let more = match &mut self.chain {
            None => {
                let response = slot.response();
                self.extra = response.flags.has(Flags::EXTRA_INFO);
                let chain = self.chain.insert(Arrival::new(response.flags));
                chain.push(response)?
            }
            Some(chain) if self.extra => {
                let extra = slot.extra();
                chain.extras.take(&extra)?;
                chain.slots = chain.slots.saturating_add(1);
                self.extra = extra.more;
                chain.first.has(Flags::MORE_DATA)
            }
            Some(chain) => chain.push(slot.response())?,
        };
        if more || self.extra {
            return Ok(None);
        }
        let Some(mut chain) = self.chain.take() else { return Ok(None) };
        chain.find_first();
        Ok(Some(chain))
    }

    /// Says that the ring has no more responses.
    ///
    /// # Errors
    ///
    /// [`Fault::Cut`] where that is in the middle of a packet: a backend publishes whole ones.
    pub fn end(&self) -> Result<(), Fault> {
        match &self.chain {
            None => Ok(()),
            Some(chain) => Err(Fault::Cut { slots: chain.slots }),
        }
    }
}

impl Arrival {
    fn new(first: Flags) -> Self {
        Self {
            first,
            extras: Extras::default(),
            pieces: [Piece::default(); MOST],
            count: 0,
            slots: 0,
            size: 0,
            failed: None,
        }
    }

    /// Takes a response in, and says whether another follows.
    #[inline]
    fn push(&mut self, response: Response) -> Result<bool, Fault> {
        let room = self.pieces.get_mut(self.count).ok_or(Fault::SlotCount { most: MOST })?;
        // Negative where the page could not be filled.
        let size = u16::try_from(response.status).unwrap_or(0);
        if response.status < 0 {
            self.failed = self.failed.or(Some(response.status));
        }
        check_piece(response.offset, size)?;
        *room = Piece { slot: self.slots, id: response.id, offset: response.offset, size };
        self.count = self.count.saturating_add(1);
        self.slots = self.slots.saturating_add(1);
        self.size = self.size.saturating_add(usize::from(size));
        Ok(response.flags.has(Flags::MORE_DATA))
    }

    /// Where a headroom is said in an extra but not in the first response, as Linux's backend does
    /// it, the extra is right. What then would reach past the page is less than the backend says,
    /// for Linux counts the headroom in.
    #[inline]
    fn find_first(&mut self) {
        let Some(headroom) = self.extras.headroom else { return };
        let Some(first) = self.pieces.first_mut().filter(|first| first.offset == 0) else { return };
        let room = hypervisor::PAGE_SIZE.saturating_sub(usize::from(headroom));
        let size = u16::try_from(room).map_or(first.size, |room| first.size.min(room));
        self.size = self.size.saturating_sub(usize::from(first.size.saturating_sub(size)));
        *first = Piece { offset: if size == 0 { 0 } else { headroom }, size, ..*first };
    }

    /// How many slots it has on the ring.
    #[inline]
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// The id that the backend echoes for each page that was not under an extra, with how many
    /// slots it is behind the first; whether or not the packet is usable.
    #[inline]
    pub fn pages(&self) -> impl Iterator<Item = (usize, u16)> + '_ {
        self.all().iter().map(|piece| (piece.slot, piece.id))
    }

    /// Its size, which is [`MAX_RX_SIZE`] at most, and what is said of it.
    ///
    /// # Errors
    ///
    /// [`Dropped`]: there is no usable packet in it.
    #[inline]
    pub fn packet(&self) -> Result<(usize, Offload), Dropped> {
        if let Some(status) = self.failed {
            return Err(Dropped::Failed { status });
        }
        if self.extras.multicast.is_some() {
            return Err(Dropped::MulticastData { slots: self.count });
        }
        if self.size < ETHERNET_HEADER {
            return Err(Dropped::TooShort { size: self.size });
        }
        if self.size > MAX_RX_SIZE {
            return Err(Dropped::Oversized { size: self.size });
        }
        let checksum = if self.first.has(Flags::CSUM_BLANK) {
            Checksum::Blank
        } else if self.first.has(Flags::DATA_VALIDATED) {
            Checksum::Validated
        } else {
            Checksum::Unchecked
        };
        let offload = Offload { checksum, gso: self.extras.gso, hash: self.extras.hash };
        Ok((self.size, offload))
    }

    /// Its pieces in order, without those that have nothing in them.
    #[inline]
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.all().iter().copied().filter(|piece| piece.size > 0)
    }

    #[inline]
    fn all(&self) -> &[Piece] {
        self.pieces.get(..self.count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
