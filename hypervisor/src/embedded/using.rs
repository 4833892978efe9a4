//! Mapping and copying what other domains granted.
//!
//! The whole memory of a peer is mapped while anything of it is, so mapping one page, or several
//! that are neighbours, is no system call: the pointer is there already. Only pages that are not
//! neighbours are given a range of their own. Whoever copies from a peer of which it has nothing
//! mapped pays for mapping its memory with each batch; a backend has the ring mapped.
#![expect(unsafe_code, reason = "Mapping promises that its pages stay mapped")]

use std::sync::Arc;

use crate::memory::{Access, CopyOp, Direction, GrantStatus, MapFailed, Memory, Using};
use crate::{DomId, GrantRef, HostError, PAGE_SIZE};

use super::map::Map;
use super::peer::Peer;
use super::session::Domain;

/// Pages that another domain granted, side by side. Dropping it ends their use.
#[derive(Debug)]
pub struct Mapping {
    // Before `used`, so that the range is unmapped before the entries are free to be revoked.
    _gathered: Option<Map>,
    used: Used,
    base: *mut u8,
    len: usize,
}

// SAFETY: `base` points into memory that `used` or `gathered` keeps mapped for the process, not for
// a thread, and it is reached through raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

// SAFETY: `base` and `len` were checked to lie inside the peer's view, or are those of `gathered`;
// both stay mapped as long as `self` lives, writable where the mapping was asked for so, and never
// change.
unsafe impl Memory for Mapping {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Mapping {
    /// The domain whose pages these are.
    #[must_use]
    pub fn peer(&self) -> DomId {
        self.used.peer.domain
    }
}

/// References in use; dropping it ends that.
#[derive(Debug)]
struct Used {
    peer: Arc<Peer>,
    references: References,
}

#[derive(Debug)]
enum References {
    One(GrantRef),
    Several(Vec<GrantRef>),
}

impl Drop for Used {
    fn drop(&mut self) {
        match &self.references {
            References::One(gref) => self.peer.release(*gref),
            References::Several(grefs) => {
                for gref in grefs {
                    self.peer.release(*gref);
                }
            }
        }
    }
}

impl Using for Domain {
    type Mapping = Mapping;

    fn map(&self, peer: DomId, grefs: &[GrantRef], access: Access) -> Result<Mapping, MapFailed> {
        let Some(&first) = grefs.first() else {
            return Err(HostError::new("map no pages", libc::EINVAL).into());
        };
        let Some(peer) = self.peer(peer)? else {
            return Err(MapFailed::Refused {
                domain: peer,
                gref: first,
                status: GrantStatus::BAD_DOMAIN,
            });
        };
        match grefs {
            [gref] => map_one(peer, *gref, access),
            grefs => map_several(peer, grefs, access),
        }
    }

    fn copy(&self, peer: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), HostError> {
        let peer = self.peer(peer)?;
        for op in ops {
            op.status = match &peer {
                Some(peer) => copy_one(peer, op)?,
                None => GrantStatus::BAD_DOMAIN,
            };
        }
        Ok(())
    }
}

fn map_one(peer: Arc<Peer>, gref: GrantRef, access: Access) -> Result<Mapping, MapFailed> {
    let view = peer.view(access)?.base();
    let frame = peer.acquire(gref, access).map_err(|status| MapFailed::Refused {
        domain: peer.domain,
        gref,
        status,
    })?;
    let used = Used { peer, references: References::One(gref) };
    Ok(Mapping { _gathered: None, used, base: page(view, frame), len: PAGE_SIZE })
}

fn map_several(peer: Arc<Peer>, grefs: &[GrantRef], access: Access) -> Result<Mapping, MapFailed> {
    let view = peer.view(access)?.base();
    let mut frames = Vec::with_capacity(grefs.len());
    // What was acquired before one is refused is released again by the drop of `used`.
    let mut used = Used { peer, references: References::Several(Vec::with_capacity(grefs.len())) };
    for &gref in grefs {
        let frame = used.peer.acquire(gref, access).map_err(|status| MapFailed::Refused {
            domain: used.peer.domain,
            gref,
            status,
        })?;
        frames.push(frame);
        if let References::Several(acquired) = &mut used.references {
            acquired.push(gref);
        }
    }
    let len = grefs.len().saturating_mul(PAGE_SIZE);
    let neighbours = frames.windows(2).all(|pair| match pair {
        [one, next] => one.checked_add(1) == Some(*next),
        _ => true,
    });
    if neighbours && let Some(&first) = frames.first() {
        return Ok(Mapping { _gathered: None, used, base: page(view, first), len });
    }
    let gathered = used.peer.gather(&frames, access)?;
    let base = gathered.base();
    Ok(Mapping { _gathered: Some(gathered), used, base, len })
}

fn copy_one(peer: &Peer, op: &mut CopyOp<'_>) -> Result<GrantStatus, HostError> {
    let offset = usize::from(op.offset);
    if offset.saturating_add(op.local.len()) > PAGE_SIZE {
        return Ok(GrantStatus::BAD_COPY_ARG);
    }
    let access = match op.direction {
        Direction::FromPeer => Access::ReadOnly,
        Direction::ToPeer => Access::ReadWrite,
    };
    let frame = match peer.acquire(op.gref, access) {
        Ok(frame) => frame,
        Err(status) => return Ok(status),
    };
    let at = (frame as usize).saturating_mul(PAGE_SIZE).saturating_add(offset);
    // Reading through the writable view: nothing is written, and a second view costs a mapping.
    let view = peer.view(Access::ReadWrite)?;
    let copied = match op.direction {
        Direction::FromPeer => view.read_at(at, op.local),
        Direction::ToPeer => view.write_at(at, op.local),
    };
    peer.release(op.gref);
    Ok(if copied.is_ok() { GrantStatus::OKAY } else { GrantStatus::BAD_PAGE })
}

fn page(view: *mut u8, frame: u32) -> *mut u8 {
    view.wrapping_add((frame as usize).wrapping_mul(PAGE_SIZE))
}
