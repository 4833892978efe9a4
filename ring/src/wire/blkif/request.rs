//! A request: reading, writing, flushing, discarding.
//!
//! Before it: a slot's bytes, copied out. After it: whoever validates the claims against the disk.
//! Only the segments that a request says it has are read.

use hypervisor::GrantRef;

use super::{DISCARD_SECURE, Indirect, Layout, MAX_SEGMENTS, operation};
use crate::Fault;
use crate::wire::{bytes_at, put_at};

/// `struct blkif_request` and the structs that share its slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The operation as it was on the wire, to be echoed in the response.
    pub operation: u8,
    /// The frontend's private value, to be echoed in the response.
    pub id: u64,
    /// The frontend's number for the disk. A ring belongs to one disk, so nothing depends on it.
    pub handle: u16,
    /// What is asked.
    pub kind: Kind,
}

/// What is asked, by operation.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Read from the disk into the segments.
    Read(Transfer),
    /// Write the segments to the disk.
    Write(Transfer),
    /// Write, after all that came before and before all that comes after; may carry no segment.
    Barrier(Transfer),
    /// Make everything answered before durable; then write the segments, where there are any.
    Flush(Transfer),
    /// Forget a range.
    Discard(Discard),
    /// Read or write with the segments listed in other pages.
    Indirect(Indirect),
    /// An operation that is none of these.
    Unknown(u8),
}

/// Data between the disk and the frontend's pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Where on the disk, in sectors of 512 bytes.
    pub sector: u64,
    /// Where in memory.
    pub segments: Segments,
}

/// A run of sectors within one granted page (`struct blkif_request_segment`). Also the wire form,
/// without its two bytes of padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The page.
    pub gref: GrantRef,
    /// First sector of the page, from 0.
    pub first: u8,
    /// Last sector of the page, which belongs to the run.
    pub last: u8,
}

impl Segment {
    /// Bytes of one on the wire.
    pub const SIZE: usize = 8;

    const NONE: Self = Self { gref: GrantRef(0), first: 0, last: 0 };

    /// Reads one.
    #[inline]
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let [a, b, c, d, first, last, _, _] = *bytes;
        Self { gref: GrantRef(u32::from_le_bytes([a, b, c, d])), first, last }
    }

    /// Writes one, its padding zero.
    #[inline]
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.gref.0.to_le_bytes();
        [a, b, c, d, self.first, self.last, 0, 0]
    }
}

/// The segments of one request, and how many it claims to have.
#[derive(Clone, Debug)]
pub struct Segments {
    claimed: u8,
    all: [Segment; MAX_SEGMENTS],
}

impl Segments {
    /// None.
    pub const EMPTY: Self = Self { claimed: 0, all: [Segment::NONE; MAX_SEGMENTS] };

    /// Those of `list`.
    ///
    /// # Errors
    ///
    /// [`Fault::SegmentCount`] where they are more than a request holds.
    pub fn new(list: &[Segment]) -> Result<Self, Fault> {
        let mut segments = Self::EMPTY;
        let too_many = Fault::SegmentCount {
            count: u16::try_from(list.len()).unwrap_or(u16::MAX),
            most: MAX_SEGMENTS as u16,
        };
        let room = segments.all.get_mut(..list.len()).ok_or(too_many)?;
        room.copy_from_slice(list);
        segments.claimed = u8::try_from(list.len()).map_err(|_| too_many)?;
        Ok(segments)
    }

    /// The segments.
    ///
    /// # Errors
    ///
    /// [`Fault::SegmentCount`] where the request claims more than it can hold.
    #[inline]
    pub fn get(&self) -> Result<&[Segment], Fault> {
        self.all.get(..usize::from(self.claimed)).ok_or(Fault::SegmentCount {
            count: u16::from(self.claimed),
            most: MAX_SEGMENTS as u16,
        })
    }

    /// How many the request claims to have, which may be more than there can be.
    #[inline]
    #[must_use]
    pub fn claimed(&self) -> u8 {
        self.claimed
    }

    #[inline]
    fn decode(claimed: u8, bytes: &[u8]) -> Self {
        let mut segments = Self { claimed, ..Self::EMPTY };
        let wire = bytes.as_chunks::<{ Segment::SIZE }>().0;
        for (segment, bytes) in segments.all.iter_mut().zip(wire).take(usize::from(claimed)) {
            *segment = Segment::decode(bytes);
        }
        segments
    }

    #[inline]
    fn encode(&self, bytes: &mut [u8]) {
        let room = bytes.as_chunks_mut::<{ Segment::SIZE }>().0;
        for (room, segment) in room.iter_mut().zip(&self.all).take(usize::from(self.claimed)) {
            *room = segment.encode();
        }
    }
}

impl PartialEq for Segments {
    fn eq(&self, other: &Self) -> bool {
        self.claimed == other.claimed && self.all == other.all
    }
}

impl Eq for Segments {}

/// A range of the disk that is not needed any more (`struct blkif_request_discard`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Discard {
    /// Where it begins, in sectors of 512 bytes.
    pub sector: u64,
    /// How long it is, in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether what was there must become unrecoverable.
    pub secure: bool,
}

impl Request {
    /// Reads one out of a copied slot.
    #[inline]
    pub(super) fn decode<L: Layout>(slot: &[u8]) -> Self {
        let [operation, second] = bytes_at(slot, 0);
        let id = u64::from_le_bytes(bytes_at(slot, L::ID));
        let sector = u64::from_le_bytes(bytes_at(slot, L::SECTOR));
        let handle = u16::from_le_bytes(bytes_at(slot, 2));
        if operation <= operation::FLUSH_DISKCACHE {
            let segments = Segments::decode(second, slot.get(L::BODY..).unwrap_or_default());
            let transfer = Transfer { sector, segments };
            // One decoding for the four: the compiler then builds it in place.
            let kind = match operation {
                operation::READ => Kind::Read(transfer),
                operation::WRITE => Kind::Write(transfer),
                operation::WRITE_BARRIER => Kind::Barrier(transfer),
                _ => Kind::Flush(transfer),
            };
            return Self { operation, id, handle, kind };
        }
        let kind = match operation {
            operation::DISCARD => Kind::Discard(Discard {
                sector,
                sectors: u64::from_le_bytes(bytes_at(slot, L::BODY)),
                secure: second & DISCARD_SECURE != 0,
            }),
            operation::INDIRECT => {
                let handle = u16::from_le_bytes(bytes_at(slot, L::INDIRECT_HANDLE));
                let kind = Kind::Indirect(Indirect::decode::<L>(slot, sector));
                return Self { operation, id, handle, kind };
            }
            other => Kind::Unknown(other),
        };
        Self { operation, id, handle, kind }
    }

    /// Writes it into a zeroed slot. The kind decides; [`Self::operation`] counts only where the
    /// kind is [`Kind::Unknown`].
    #[inline]
    pub(super) fn encode<L: Layout>(&self, slot: &mut [u8]) {
        put_at(slot, L::ID, self.id.to_le_bytes());
        let mut transfer = |operation: u8, transfer: &Transfer| {
            put_at(slot, 0, [operation, transfer.segments.claimed]);
            put_at(slot, 2, self.handle.to_le_bytes());
            put_at(slot, L::SECTOR, transfer.sector.to_le_bytes());
            transfer.segments.encode(slot.get_mut(L::BODY..).unwrap_or_default());
        };
        match &self.kind {
            Kind::Read(data) => transfer(operation::READ, data),
            Kind::Write(data) => transfer(operation::WRITE, data),
            Kind::Barrier(data) => transfer(operation::WRITE_BARRIER, data),
            Kind::Flush(data) => transfer(operation::FLUSH_DISKCACHE, data),
            Kind::Discard(discard) => {
                let flag = if discard.secure { DISCARD_SECURE } else { 0 };
                put_at(slot, 0, [operation::DISCARD, flag]);
                put_at(slot, 2, self.handle.to_le_bytes());
                put_at(slot, L::SECTOR, discard.sector.to_le_bytes());
                put_at(slot, L::BODY, discard.sectors.to_le_bytes());
            }
            Kind::Indirect(indirect) => {
                put_at(slot, L::INDIRECT_HANDLE, self.handle.to_le_bytes());
                indirect.encode::<L>(slot);
            }
            Kind::Unknown(operation) => {
                put_at(slot, 0, [*operation]);
                put_at(slot, 2, self.handle.to_le_bytes());
            }
        }
    }

    fn new(operation: u8, id: u64, kind: Kind) -> Self {
        Self { operation, id, handle: 0, kind }
    }

    /// Asks to read.
    #[must_use]
    pub fn read(id: u64, transfer: Transfer) -> Self {
        Self::new(operation::READ, id, Kind::Read(transfer))
    }

    /// Asks to write.
    #[must_use]
    pub fn write(id: u64, transfer: Transfer) -> Self {
        Self::new(operation::WRITE, id, Kind::Write(transfer))
    }

    /// Asks to write in order.
    #[must_use]
    pub fn barrier(id: u64, transfer: Transfer) -> Self {
        Self::new(operation::WRITE_BARRIER, id, Kind::Barrier(transfer))
    }

    /// Asks to make what was answered durable.
    #[must_use]
    pub fn flush(id: u64) -> Self {
        let nothing = Transfer { sector: 0, segments: Segments::EMPTY };
        Self::new(operation::FLUSH_DISKCACHE, id, Kind::Flush(nothing))
    }

    /// Asks to discard.
    #[must_use]
    pub fn discard(id: u64, discard: Discard) -> Self {
        Self::new(operation::DISCARD, id, Kind::Discard(discard))
    }

    /// Asks to read or write what other pages list.
    #[must_use]
    pub fn indirect(id: u64, indirect: Indirect) -> Self {
        Self::new(operation::INDIRECT, id, Kind::Indirect(indirect))
    }
}
