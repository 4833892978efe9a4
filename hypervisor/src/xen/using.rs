//! Mapping and copying what other domains granted, through `/dev/xen/gntdev`.
//!
//! The device maps a batch or none of it and does not say which reference it was that Xen refused.
//! To name it, a batch that was refused is asked for again page by page: first by copying a byte
//! from each, which has a status of its own, and then, for a page that may be read but not written,
//! by mapping it alone.
//!
//! Copying is one call of the kernel for the batch, which hands it to Xen sixteen at a time and has
//! a status for each. Our side of a copy may lie across pages of ours; the peer's may not, and one
//! that does is refused here, because it would fail the whole batch.
//!
//! One open file serves the whole process. The kernel looks through its list of mappings when one is
//! added or given up, while it holds a lock of that file.
//!
//! When an operation of the kernel's still uses a page (I/O under way), unmapping returns at once and
//! the kernel gives the grant back when the operation ends.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::event::Channel as _;
use crate::memory::{Access, CopyOp, Direction, GrantStatus, MapFailed, Using};
use crate::{DomId, GrantRef, HostError, PAGE_SIZE};

use super::channel::EventChannel;
use super::domain::Domain;
use super::window::Window;
use super::{ioctl, leak};

/// Pages that another domain granted, side by side. Dropping it unmaps them.
pub type Mapping = Window<Lease>;

/// Grants that gntdev holds for us; given back when this goes.
#[derive(Debug)]
pub struct Lease {
    gntdev: Arc<OwnedFd>,
    index: u64,
    count: u32,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(errno) = ioctl::unmap(self.gntdev.as_fd(), self.index, self.count) {
            leak::leaked(self.count as usize, "give grants back", errno);
        }
    }
}

impl Mapping {
    /// Has the kernel clear the byte at `offset`, and notify through `channel`, when the page with
    /// that byte is unmapped, by us or because this process died. A later call for the same mapping
    /// replaces an earlier one; with neither, nothing is done any more.
    ///
    /// # Errors
    ///
    /// The mapping has no such byte, or is read-only.
    pub fn on_unmap(
        &self,
        offset: usize,
        clear: bool,
        channel: Option<&EventChannel>,
    ) -> Result<(), HostError> {
        let failed = |errno| {
            let doing = format!("have byte {offset} of a mapping watched");
            HostError::new(doing, errno as i32)
        };
        let pages = usize::try_from(self.kept.count).unwrap_or(usize::MAX);
        if offset >= pages.saturating_mul(PAGE_SIZE) {
            return Err(failed(Errno::EINVAL));
        }
        let action = u32::from(clear) | if channel.is_some() { 2 } else { 0 };
        let port = channel.map_or(0, |channel| channel.port().0);
        let index = self.kept.index.saturating_add(offset as u64);
        ioctl::on_unmap(self.kept.gntdev.as_fd(), index, action, port).map_err(failed)
    }
}

/// Why a batch was not mapped.
enum Unmapped {
    /// Xen or the kernel refused to map what was named.
    Refused(Errno),
    /// The kernel did not even take the names.
    Host(HostError),
}

impl Using for Domain {
    type Mapping = Mapping;

    fn map(&self, peer: DomId, grefs: &[GrantRef], access: Access) -> Result<Mapping, MapFailed> {
        let gntdev = self.gntdev()?;
        let errno = match try_map(&gntdev, peer, grefs, access) {
            Ok(mapping) => return Ok(mapping),
            Err(Unmapped::Host(error)) => return Err(error.into()),
            Err(Unmapped::Refused(errno)) => errno,
        };
        if let Some((gref, status)) = refused(&gntdev, peer, grefs, access)? {
            return Err(MapFailed::Refused { domain: peer, gref, status });
        }
        // None of them is refused, now. So they were granted meanwhile, or it is the host's doing.
        match try_map(&gntdev, peer, grefs, access) {
            Ok(mapping) => Ok(mapping),
            Err(Unmapped::Host(error)) => Err(error.into()),
            Err(Unmapped::Refused(_)) => {
                let count = grefs.len();
                let doing = format!("map {count} pages that domain {peer} granted");
                Err(HostError::new(doing, errno as i32).into())
            }
        }
    }

    fn copy(&self, peer: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), HostError> {
        let gntdev = self.gntdev()?;
        copy(&gntdev, peer, ops)
    }
}

fn copy(gntdev: &OwnedFd, peer: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), HostError> {
    let count = ops.len();
    ioctl::copy(gntdev.as_fd(), peer, ops).map_err(|errno| {
        let doing = format!("copy {count} times between pages of domain {peer} and our own");
        HostError::new(doing, errno as i32)
    })
}

fn try_map(
    gntdev: &Arc<OwnedFd>,
    peer: DomId,
    grefs: &[GrantRef],
    access: Access,
) -> Result<Mapping, Unmapped> {
    let file = gntdev.as_fd();
    let count = u32::try_from(grefs.len()).unwrap_or(u32::MAX);
    let index = ioctl::map(file, peer, grefs).map_err(|errno| {
        let doing = format!("name {count} grants of domain {peer} to the kernel");
        Unmapped::Host(HostError::new(doing, errno as i32))
    })?;
    let lease = Lease { gntdev: Arc::clone(gntdev), index, count };
    let writable = access == Access::ReadWrite;
    // Where it fails, the lease goes with the error.
    Window::of(file, index, grefs.len(), writable, lease).map_err(|(errno, _)| match errno {
        Errno::ENOMEM => {
            let doing = format!("map {count} pages that domain {peer} granted");
            Unmapped::Host(HostError::new(doing, errno as i32))
        }
        errno => Unmapped::Refused(errno),
    })
}

/// The first of `grefs` that is refused, and why.
fn refused(
    gntdev: &Arc<OwnedFd>,
    peer: DomId,
    grefs: &[GrantRef],
    access: Access,
) -> Result<Option<(GrantRef, GrantStatus)>, HostError> {
    let mut bytes = vec![0_u8; grefs.len()];
    let mut ops: Vec<CopyOp<'_>> = grefs
        .iter()
        .zip(bytes.chunks_mut(1))
        .map(|(gref, local)| CopyOp {
            gref: *gref,
            offset: 0,
            direction: Direction::FromPeer,
            local,
            status: GrantStatus::GENERAL_ERROR,
        })
        .collect();
    copy(gntdev, peer, &mut ops)?;
    for op in ops {
        if !op.status.is_okay() {
            return Ok(Some((op.gref, op.status)));
        }
        match try_map(gntdev, peer, &[op.gref], access) {
            Ok(_) => {}
            // What Xen answers where a page that may only be read is to be written.
            Err(Unmapped::Refused(_)) => {
                return Ok(Some((op.gref, GrantStatus::GENERAL_ERROR)));
            }
            Err(Unmapped::Host(error)) => return Err(error),
        }
    }
    Ok(None)
}
