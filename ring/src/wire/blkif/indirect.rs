//! Indirect requests: the segments are listed in pages of their own.
//!
//! Before it: a slot's bytes, copied out; or an indirect page's, mapped or copied by grant and then
//! copied out. After it: whoever validates the segments, as for any request.
//!
//! A page lists up to 512 segments of 8 bytes, one after the other; a request names up to 8 pages.

use hypervisor::{GrantRef, PAGE_SIZE};

use super::{Layout, MAX_INDIRECT_PAGES, Segment, operation};
use crate::Fault;
use crate::wire::{bytes_at, put_at};

/// Segments that one indirect page lists.
pub const SEGMENTS_PER_PAGE: usize = PAGE_SIZE / Segment::SIZE;

/// Reading or writing with up to 4096 segments (`struct blkif_request_indirect`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Indirect {
    /// The operation inside, as it was on the wire; see [`Self::is_write`].
    pub operation: u8,
    /// Where on the disk, in sectors of 512 bytes.
    pub sector: u64,
    /// How many segments it claims; see [`Self::pages`].
    pub count: u16,
    /// The pages that list them.
    pub grefs: [GrantRef; MAX_INDIRECT_PAGES],
}

impl Indirect {
    /// Whether it writes to the disk, rather than reading.
    ///
    /// # Errors
    ///
    /// [`Fault::IndirectOperation`] where it asks for something else.
    #[inline]
    pub fn is_write(&self) -> Result<bool, Fault> {
        match self.operation {
            operation::READ => Ok(false),
            operation::WRITE => Ok(true),
            other => Err(Fault::IndirectOperation { operation: other }),
        }
    }

    /// The pages that list its segments, which are at least one and `most` at most.
    ///
    /// # Errors
    ///
    /// [`Fault::SegmentCount`].
    #[inline]
    pub fn pages(&self, most: u16) -> Result<&[GrantRef], Fault> {
        let fault = Fault::SegmentCount { count: self.count, most };
        if self.count == 0 || self.count > most {
            return Err(fault);
        }
        self.grefs.get(..pages_for(usize::from(self.count))).ok_or(fault)
    }

    #[inline]
    pub(super) fn decode<L: Layout>(slot: &[u8], sector: u64) -> Self {
        let [operation] = bytes_at(slot, 1);
        let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
        let wire = slot.get(L::INDIRECT_GREFS..).unwrap_or_default().as_chunks::<4>().0;
        for (gref, bytes) in grefs.iter_mut().zip(wire) {
            *gref = GrantRef(u32::from_le_bytes(*bytes));
        }
        Self { operation, sector, count: u16::from_le_bytes(bytes_at(slot, 2)), grefs }
    }

    #[inline]
    pub(super) fn encode<L: Layout>(&self, slot: &mut [u8]) {
        put_at(slot, 0, [operation::INDIRECT, self.operation]);
        put_at(slot, 2, self.count.to_le_bytes());
        put_at(slot, L::SECTOR, self.sector.to_le_bytes());
        let room = slot.get_mut(L::INDIRECT_GREFS..).unwrap_or_default().as_chunks_mut::<4>().0;
        for (room, gref) in room.iter_mut().zip(&self.grefs) {
            *room = gref.0.to_le_bytes();
        }
    }
}

/// How many pages it takes to list `segments` segments.
#[inline]
#[must_use]
pub const fn pages_for(segments: usize) -> usize {
    segments.div_ceil(SEGMENTS_PER_PAGE)
}

/// The segments listed in `bytes`, an indirect page's or a beginning of it; copied out, for they are
/// read here piece by piece. The list has no end mark: take as many as the request claims.
#[inline]
pub fn segments(bytes: &[u8]) -> impl ExactSizeIterator<Item = Segment> {
    bytes.as_chunks::<{ Segment::SIZE }>().0.iter().map(Segment::decode)
}

/// Lists `segments` in `bytes`, as many as have room, and says how many.
pub fn encode_segments(segments: &[Segment], bytes: &mut [u8]) -> usize {
    let room = bytes.as_chunks_mut::<{ Segment::SIZE }>().0;
    let fit = room.len().min(segments.len());
    for (room, segment) in room.iter_mut().zip(segments) {
        *room = segment.encode();
    }
    fit
}
