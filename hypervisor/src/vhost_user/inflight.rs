//! Memory in which queues note what is under way, kept by the monitor while we are not there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::message::{Announced, Fields, fault};
use super::{Region, Span};
use crate::memory::Memory as _;
use crate::{Error, HostError};

/// The most entries of a queue (virtio 1.2, 2.7).
const MOST_ENTRIES: u16 = 32768;

/// What is said of the region (`struct VhostUserInflight`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) len: u64,
    pub(super) offset: u64,
    pub(super) queues: u16,
    pub(super) size: u16,
}

impl About {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields::new(payload);
        let about = Self {
            len: fields.u64()?,
            offset: fields.u64()?,
            queues: fields.u16()?,
            size: fields.u16()?,
        };
        if about.queues == 0 || about.size == 0 || about.size > MOST_ENTRIES {
            let value = format!("{} queues of {} entries", about.queues, about.size);
            return Err(fault("inflight_size", value).into());
        }
        Ok(about)
    }

    /// Bytes of one queue's part.
    fn each(&self) -> usize {
        // As the queue has it: a header, and 16 bytes for each entry, in units of 64.
        usize::from(self.size).saturating_mul(16).saturating_add(16).next_multiple_of(64)
    }

    /// As many bytes as `asked`, in which somebody else said the same: some add padding.
    pub(super) fn bytes(&self, asked: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.len.to_ne_bytes());
        bytes.extend(self.offset.to_ne_bytes());
        bytes.extend(self.queues.to_ne_bytes());
        bytes.extend(self.size.to_ne_bytes());
        bytes.resize(asked.len(), 0);
        bytes
    }
}

/// The region.
#[derive(Debug)]
pub(super) struct Notes {
    about: About,
    region: Arc<Region>,
}

impl Notes {
    /// A new region, and the file that the monitor is to keep.
    pub(super) fn create(about: About) -> Result<(Self, About, OwnedFd), Error> {
        let failed =
            |errno: Errno| HostError::new("make a region for inflight requests", errno as i32);
        let len = about.each().saturating_mul(usize::from(about.queues));
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create("vhost-inflight", flags).map_err(failed)?;
        let size = i64::try_from(len).map_err(|_| failed(Errno::EFBIG))?;
        nix::unistd::ftruncate(&file, size).map_err(failed)?;
        let about = About { len: len as u64, offset: 0, ..about };
        let copy = file.try_clone().map_err(|e| HostError::from_io("share a region", &e))?;
        Ok((Self::of(about, copy)?, about, file))
    }

    /// The region that an earlier process made.
    pub(super) fn of(about: About, file: OwnedFd) -> Result<Self, Error> {
        let needed = about.each().saturating_mul(usize::from(about.queues)) as u64;
        if about.len < needed {
            let value = format!("{} bytes where {needed} are needed", about.len);
            return Err(fault("inflight_size", value).into());
        }
        let announced = Announced { guest: 0, user: 0, len: about.len, offset: about.offset };
        let region = Region::of(&File::from(file), announced)?;
        Ok(Self { about, region: Arc::new(region) })
    }

    /// Forgets what is noted, in the first `queues` queues.
    pub(super) fn clear(&self, queues: usize) {
        let queues = queues.min(usize::from(self.about.queues));
        let whole = self.about.each().saturating_mul(queues);
        if let Some((offset, _)) = self.region.guest(0) {
            // It was checked that the region has so many bytes.
            let _ = self.region.fill(offset, whole, 0);
        }
    }

    /// Queue `number`'s part, where it has one.
    pub(super) fn part(&self, number: u16) -> Option<Span> {
        if number >= self.about.queues {
            return None;
        }
        let len = self.about.each();
        let at = len.saturating_mul(usize::from(number)) as u64;
        let (offset, left) = self.region.guest(at)?;
        (left >= len as u64).then(|| Span { region: Arc::clone(&self.region), offset, len })
    }
}
