//! Gathers what a request says of its data: the segments in its slot, or those that an indirect
//! request lists in pages of its own.
//!
//! Before: `receive`. After: `validate`. Indirect pages are copied out once, and what is checked and
//! used is that copy. Trust: counts are checked here, since they bound what is copied; everything
//! else in a segment is still the peer's word. Source: `struct blkif_request_indirect` (io/blkif.h,
//! RELEASE-4.17). Units: sectors of 512 bytes before validation, bytes after.

use hypervisor::memory::MapFailed;
use hypervisor::{GrantRef, PAGE_SIZE};
use ring::wire::blkif::{self, Kind, SEGMENTS_PER_PAGE, Transfer, operation};

use crate::acquire::{GuestMemory, Reached};
use crate::validate::{Action, Refusal};

/// A run of bytes within one page of the guest's, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The page.
    pub page: GrantRef,
    /// Where in the page, in bytes.
    pub offset: u16,
    /// How many bytes.
    pub len: u16,
}

/// What a request carries along the path. Reused from request to request, so that none allocates.
#[derive(Debug)]
pub struct Body<H> {
    /// Where its data is, in the order in which it lies on the medium.
    pub segments: Vec<Segment>,
    /// The same once it can be reached.
    pub reached: Reached<H>,
    /// Why it could not be copied.
    pub failed: Option<MapFailed>,
}

impl<H> Default for Body<H> {
    fn default() -> Self {
        Self { segments: Vec::new(), reached: Reached::default(), failed: None }
    }
}

/// What a request asks for, before anything of it is checked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The operation to echo in the response.
    pub operation: u8,
    /// What to do.
    pub action: Action,
    /// Where, in sectors of 512 bytes.
    pub sector: u64,
    /// How much, in sectors of 512 bytes, where no segments say so.
    pub sectors: u64,
    /// With which data.
    pub segments: &'a [blkif::Segment],
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

    /// What `request` asks for.
    ///
    /// # Errors
    ///
    /// There is no such operation, its count is out of range, or its pages cannot be had.
    #[inline]
    pub fn gather<'a, G: GuestMemory>(
        &'a mut self,
        request: &'a blkif::Request,
        memory: &mut G,
    ) -> Result<Asked<'a>, Refusal> {
        let (action, transfer) = match &request.kind {
            Kind::Read(transfer) => (Action::Read, transfer),
            Kind::Write(transfer) => (Action::Write, transfer),
            Kind::Flush(transfer) => (Action::Flush, transfer),
            Kind::Barrier(transfer) => (Action::Barrier, transfer),
            Kind::Discard(discard) => {
                return Ok(Asked {
                    operation: request.operation,
                    action: Action::Discard { secure: discard.secure },
                    sector: discard.sector,
                    sectors: discard.sectors,
                    segments: &[],
                });
            }
            Kind::Indirect(indirect) => return self.indirect(indirect, memory),
            _ => return Err(Refusal::UnknownOperation),
        };
        let Transfer { sector, segments } = transfer;
        let segments = segments.get().map_err(|_| Refusal::SegmentCount)?;
        let operation = request.operation;
        Ok(Asked { operation, action, sector: *sector, sectors: 0, segments })
    }

    fn indirect<G: GuestMemory>(
        &mut self,
        indirect: &blkif::Indirect,
        memory: &mut G,
    ) -> Result<Asked<'_>, Refusal> {
        // A backend that offered no indirect requests knows of no such operation.
        if self.most == 0 {
            return Err(Refusal::UnknownOperation);
        }
        // The response echoes the operation inside: stock frontends compare it with that.
        let (operation, action) = match indirect.is_write() {
            Ok(false) => (operation::READ, Action::Read),
            Ok(true) => (operation::WRITE, Action::Write),
            Err(_) => return Err(Refusal::IndirectOperation),
        };
        let pages = indirect.pages(self.most).map_err(|_| Refusal::SegmentCount)?;
        let mut left = usize::from(indirect.count);
        self.listed.clear();
        for page in pages {
            let count = left.min(SEGMENTS_PER_PAGE);
            let bytes = count.saturating_mul(blkif::Segment::SIZE);
            let copy = self.page.get_mut(..bytes).ok_or(Refusal::SegmentCount)?;
            memory.fetch(*page, copy).map_err(Refusal::from)?;
            self.listed.extend(blkif::segments(copy));
            left = left.saturating_sub(count);
        }
        Ok(Asked { operation, action, sector: indirect.sector, sectors: 0, segments: &self.listed })
    }
}
