//! Gathers what a request says of its data: on a Xen ring the segments in its slot, or those that an
//! indirect request lists in pages of its own.
//!
//! Before: `receive`. After: `validate`. Indirect pages are copied out once, and what is checked and
//! used is that copy. Trust: counts are checked here, since they bound what is copied, and so is that a
//! segment lies in its page; what the request does to the disk is still the peer's word. Source:
//! `struct blkif_request_indirect`, `struct blkif_request_segment` (io/blkif.h, RELEASE-4.17): positions in
//! a page are in units of 512 bytes, and `last_sect` is included. Units: bytes in what comes out.

use hypervisor::PAGE_SIZE;
use ring::wire::blkif::{self, Kind, SECTOR_SIZE, SECTORS_PER_PAGE, SEGMENTS_PER_PAGE, Transfer};

use crate::acquire::{GuestMemory, InPage, Reached};
use crate::validate::{Action, Checked, Refusal};

/// A run of the guest's bytes, in the terms of the transport that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<P> {
    /// Where they begin.
    pub at: P,
    /// How many bytes.
    pub len: u32,
}

/// What a request carries along the path. Reused from request to request, so that none allocates.
#[derive(Debug)]
pub struct Body<H, P> {
    /// Where its data is, in the order in which it lies on the medium.
    pub segments: Vec<Segment<P>>,
    /// The same once it can be reached.
    pub reached: Reached<H>,
    /// The ranges of the disk that it names, where these are several.
    pub ranges: Vec<Checked>,
    /// Why it could not be copied.
    pub failed: Option<Refusal>,
}

impl<H, P> Default for Body<H, P> {
    fn default() -> Self {
        let (segments, ranges) = (Vec::new(), Vec::new());
        Self { segments, reached: Reached::default(), ranges, failed: None }
    }
}

/// What a request asks for, before it is checked against the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What to do.
    pub action: Action,
    /// Where, in sectors of 512 bytes.
    pub sector: u64,
    /// How much: bytes in its segments, or in the range that it names without having any.
    pub len: u64,
}

/// Where indirect segments are gathered.
#[derive(Debug)]
pub struct Gather {
    most: u16,
    page: Box<[u8; PAGE_SIZE]>,
    listed: Vec<blkif::Segment>,
}

impl Gather {
    /// Takes indirect requests of at most `most` segments.
    #[must_use]
    pub fn new(most: u16) -> Self {
        Self { most, page: Box::new([0; PAGE_SIZE]), listed: Vec::new() }
    }

    /// What `request` asks for, and in `into` where its data lies, on a disk with sectors of `unit` bytes.
    ///
    /// # Errors
    ///
    /// There is no such operation, its count is out of range, its pages cannot be had, or a segment
    /// does not lie in its page.
    #[inline]
    pub fn gather<G: GuestMemory<Place = InPage>>(
        &mut self,
        request: &blkif::Request,
        memory: &mut G,
        unit: u32,
        into: &mut Vec<Segment<InPage>>,
    ) -> Result<Asked, Refusal> {
        into.clear();
        let (action, transfer) = match &request.kind {
            Kind::Read(transfer) => (Action::Read, transfer),
            Kind::Write(transfer) => (Action::Write, transfer),
            Kind::Flush(transfer) => (Action::Flush, transfer),
            Kind::Barrier(transfer) => (Action::Barrier, transfer),
            Kind::Discard(discard) => {
                let len = discard.sectors.checked_mul(SECTOR_SIZE as u64);
                return Ok(Asked {
                    action: Action::Discard { secure: discard.secure },
                    sector: discard.sector,
                    len: len.ok_or(Refusal::PastEnd)?,
                });
            }
            Kind::Indirect(indirect) => return self.indirect(indirect, memory, unit, into),
            _ => return Err(Refusal::UnknownOperation),
        };
        let Transfer { sector, segments } = transfer;
        let segments = segments.get().map_err(|_| Refusal::SegmentCount)?;
        Ok(Asked { action, sector: *sector, len: place(segments, unit, into)? })
    }

    fn indirect<G: GuestMemory<Place = InPage>>(
        &mut self,
        indirect: &blkif::Indirect,
        memory: &mut G,
        unit: u32,
        into: &mut Vec<Segment<InPage>>,
    ) -> Result<Asked, Refusal> {
        // A backend that offered no indirect requests knows of no such operation.
        if self.most == 0 {
            return Err(Refusal::UnknownOperation);
        }
        let action = match indirect.is_write() {
            Ok(false) => Action::Read,
            Ok(true) => Action::Write,
            Err(_) => return Err(Refusal::IndirectOperation),
        };
        let pages = indirect.pages(self.most).map_err(|_| Refusal::SegmentCount)?;
        let mut left = usize::from(indirect.count);
        self.listed.clear();
        for page in pages {
            let count = left.min(SEGMENTS_PER_PAGE);
            let bytes = count.saturating_mul(blkif::Segment::SIZE);
            let copy = self.page.get_mut(..bytes).ok_or(Refusal::SegmentCount)?;
            memory.fetch(InPage { page: *page, offset: 0 }, copy)?;
            self.listed.extend(blkif::segments(copy));
            left = left.saturating_sub(count);
        }
        Ok(Asked { action, sector: indirect.sector, len: place(&self.listed, unit, into)? })
    }
}

/// Checks that each segment lies in its page and consists of whole sectors of `unit` bytes, and says how many
/// bytes they are together.
#[inline]
fn place(
    segments: &[blkif::Segment],
    unit: u32,
    into: &mut Vec<Segment<InPage>>,
) -> Result<u64, Refusal> {
    let mut all = 0u64;
    for segment in segments {
        let (offset, len) = in_page(segment)?;
        if !u32::from(offset).is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(Refusal::Misaligned);
        }
        into.push(Segment { at: InPage { page: segment.gref, offset }, len });
        all = all.saturating_add(u64::from(len));
    }
    Ok(all)
}

#[inline]
fn in_page(segment: &blkif::Segment) -> Result<(u16, u32), Refusal> {
    if segment.last >= SECTORS_PER_PAGE {
        return Err(Refusal::SegmentPastPage);
    }
    let sectors = segment.last.checked_sub(segment.first).ok_or(Refusal::SegmentReversed)?;
    // Both are below 8, so neither product reaches a page's 4096 by more than its end.
    let offset = u16::from(segment.first).saturating_mul(SECTOR_SIZE as u16);
    let len = u32::from(sectors).saturating_add(1).saturating_mul(SECTOR_SIZE as u32);
    Ok((offset, len))
}

#[cfg(test)]
mod tests;
