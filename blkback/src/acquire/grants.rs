//! The guest's bytes behind grant references.

use hypervisor::memory::{
    Access, CopyOp, Direction, GrantStatus, MapFailed, Memory, OutOfRange, Using,
};
use hypervisor::{DomId, GrantRef, HostError};

use crate::acquire::bounce::Pool;
use crate::acquire::cache::Cache;
use crate::acquire::{GuestMemory, Hold, Reached, Unreached, Way};
use crate::policy::acquire::Reach;
use crate::segments::{Body, Segment};
use crate::validate::Refusal;

/// Where bytes lie in a page that the guest granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPage {
    /// The page.
    pub page: GrantRef,
    /// Where in the page, in bytes.
    pub offset: u16,
}

/// A page, and the number by which the engine knows it.
type Found<M> = (Hold<M>, Option<u16>);

/// Reaches the pages that one peer grants.
#[derive(Debug)]
pub struct Grants<U: Using> {
    domain: U,
    peer: DomId,
    how: Reach,
    cache: Cache<U::Mapping>,
    pool: Pool,
}

impl<U: Using> Grants<U> {
    /// Reaches what `peer` grants to `domain`, in the way that `how` says.
    pub fn new(domain: U, peer: DomId, how: Reach) -> Self {
        let (pages, copied) = match how {
            Reach::Persistent { pages } => (pages, 0),
            Reach::Map => (0, 0),
            Reach::Copy { pages } => (0, pages),
        };
        Self { domain, peer, how, cache: Cache::new(pages), pool: Pool::new(copied) }
    }

    fn map(&self, gref: GrantRef, access: Access) -> Result<U::Mapping, MapFailed> {
        self.domain.map(self.peer, &[gref], access)
    }

    /// The page behind `gref` out of those that stay mapped.
    #[inline]
    fn keep(&mut self, gref: GrantRef, way: Way) -> Result<Found<U::Mapping>, MapFailed> {
        if let Some((page, number)) = self.cache.get(gref) {
            return Ok((Hold::Kept(page), number));
        }
        self.map_to_keep(gref, way).map(|hold| (hold, None))
    }

    fn map_to_keep(&mut self, gref: GrantRef, way: Way) -> Result<Hold<U::Mapping>, MapFailed> {
        // Mapped to be written whatever this request wants, since the next one with the same
        // reference may want the other (io/blkif.h, note 8).
        match self.map(gref, Access::ReadWrite) {
            Ok(page) => Ok(match self.cache.insert(gref, page) {
                Ok(kept) => Hold::Kept(kept),
                Err(page) => Hold::Mapped(page),
            }),
            // A frontend that grants for reading alone breaks that note, but does so honestly.
            Err(MapFailed::Refused { .. }) if way == Way::FromGuest => {
                self.map(gref, Access::ReadOnly).map(Hold::Mapped)
            }
            Err(failed) => Err(failed),
        }
    }

    /// Copies between the guest and each request's own copy in one operation.
    fn copy<'a>(
        &mut self,
        batch: impl Iterator<Item = &'a mut Body<Hold<U::Mapping>, InPage>>,
        direction: Direction,
    ) where
        U::Mapping: 'a,
    {
        let mut bodies: Vec<(usize, &mut Option<Refusal>)> = Vec::new();
        let mut ops = Vec::new();
        for body in batch {
            let Body { reached, segments, failed, .. } = body;
            let Some(mut rest) = reached.copied() else { continue };
            let mut count = 0usize;
            for segment in segments.iter() {
                let Some((local, after)) = rest.split_at_mut_checked(segment.len as usize) else {
                    break;
                };
                rest = after;
                ops.push(CopyOp {
                    gref: segment.at.page,
                    offset: segment.at.offset,
                    direction,
                    local,
                    status: GrantStatus::GENERAL_ERROR,
                });
                count = count.saturating_add(1);
            }
            bodies.push((count, failed));
        }
        if ops.is_empty() {
            return;
        }
        let asked = self.domain.copy(self.peer, &mut ops);
        let mut results = ops.iter().map(|op| op.status);
        for (count, failed) in bodies {
            let refused = results.by_ref().take(count).filter(|status| !status.is_okay());
            // The iterator must move past this request's operations whatever the first one says.
            let first = refused.fold(None, |first, each| first.or(Some(each)));
            match (&asked, first) {
                (Err(error), _) => {
                    *failed = Some(MapFailed::from(error.clone()).into());
                }
                (Ok(()), Some(_)) => *failed = Some(Refusal::GrantRefused),
                (Ok(()), None) => {}
            }
        }
    }
}

impl<U: Using> GuestMemory for Grants<U> {
    type Hold = Hold<U::Mapping>;
    type Place = InPage;

    fn fetch(&mut self, from: InPage, into: &mut [u8]) -> Result<(), Refusal> {
        let InPage { page, offset } = from;
        let hold = match self.how {
            Reach::Persistent { .. } => self.keep(page, Way::FromGuest)?.0,
            Reach::Map => Hold::Mapped(self.map(page, Access::ReadOnly)?),
            Reach::Copy { .. } => {
                let mut op = CopyOp {
                    gref: page,
                    offset,
                    direction: Direction::FromPeer,
                    local: into,
                    status: GrantStatus::GENERAL_ERROR,
                };
                let asked = self.domain.copy(self.peer, std::slice::from_mut(&mut op));
                asked.map_err(MapFailed::from)?;
                return match op.status {
                    GrantStatus::OKAY => Ok(()),
                    _ => Err(Refusal::GrantRefused),
                };
            }
        };
        hold.read_at(usize::from(offset), into).map_err(|short| too_short(&short).into())
    }

    #[inline]
    fn reach(
        &mut self,
        segments: &[Segment<InPage>],
        way: Way,
        into: &mut Reached<Self::Hold>,
    ) -> Result<(), Unreached> {
        if let Reach::Copy { .. } = self.how {
            let bytes: usize = segments.iter().map(|segment| segment.len as usize).sum();
            let buffer = self.pool.take(bytes).ok_or(Unreached::Later)?;
            let len = u32::try_from(bytes).unwrap_or(u32::MAX);
            return into.push(Hold::Copied(buffer), None, 0, len).map_err(|e| too_short(&e).into());
        }
        for segment in segments {
            let (hold, fixed) = match (self.how, way) {
                (Reach::Persistent { .. }, _) => self.keep(segment.at.page, way)?,
                (_, Way::ToGuest) => {
                    (Hold::Mapped(self.map(segment.at.page, Access::ReadWrite)?), None)
                }
                (_, Way::FromGuest) => {
                    (Hold::Mapped(self.map(segment.at.page, Access::ReadOnly)?), None)
                }
            };
            into.push(hold, fixed, usize::from(segment.at.offset), segment.len)
                .map_err(|short| too_short(&short))?;
        }
        Ok(())
    }

    fn copy_in<'a>(&mut self, batch: impl Iterator<Item = &'a mut Body<Self::Hold, InPage>>)
    where
        Self: 'a,
    {
        if let Reach::Copy { .. } = self.how {
            self.copy(batch, Direction::FromPeer);
        }
    }

    fn copy_out<'a>(&mut self, batch: impl Iterator<Item = &'a mut Body<Self::Hold, InPage>>)
    where
        Self: 'a,
    {
        if let Reach::Copy { .. } = self.how {
            self.copy(batch, Direction::ToPeer);
        }
    }

    #[inline]
    fn release(&mut self, from: &mut Reached<Self::Hold>) {
        for hold in from.drain() {
            if let Hold::Copied(buffer) = hold {
                self.pool.put(buffer);
            }
        }
    }

    #[inline]
    fn unsettled(&self) -> bool {
        self.cache.unsettled()
    }

    fn settle(&mut self, register: impl FnMut(u16, *mut u8, usize) -> bool) {
        self.cache.settle(register);
    }

    fn idle(&mut self) {
        self.cache.unmap_unused();
        self.pool.free_unused();
    }

    fn kept(&self) -> usize {
        self.cache.len()
    }

    fn holds_back(&self) -> bool {
        !(self.cache.is_empty() && self.pool.is_empty())
    }
}

/// A mapping that is shorter than a page: the platform's doing, never the peer's.
fn too_short(short: &OutOfRange) -> MapFailed {
    MapFailed::Host(HostError::new(format!("use a mapped page: {short}"), libc::EFAULT))
}
