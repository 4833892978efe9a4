//! Files that the monitor lends, in our address space.
//!
//! Whatever is in them is reached as [`Memory`] is, or as atomics.
#![expect(unsafe_code, reason = "mmap, munmap, and atomics in what they return")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::message::{Announced, fault};
use crate::memory::Memory;
use crate::{Error, HostError, PAGE_SIZE};

/// Part of a file.
#[derive(Debug)]
pub(super) struct Map {
    base: NonNull<u8>,
    len: usize,
    /// Where the part begins in what is mapped, which begins at a page.
    skipped: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; what is in it is only reached through
// raw pointers and atomics.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// `len` bytes from `offset` on in `file`.
    pub(super) fn of(file: &File, offset: u64, len: u64) -> Result<Self, Error> {
        let failed = |errno: Errno| HostError::new(format!("map {len} bytes"), errno as i32);
        let have =
            file.metadata().map_err(|e| HostError::from_io("look at shared memory", &e))?.len();
        let end = offset.checked_add(len);
        if len == 0 || end.is_none_or(|end| end > have) {
            let value = format!("{len} bytes at {offset} in a file of {have}");
            return Err(fault("memory_past_file", value).into());
        }
        let skipped = offset.checked_rem(PAGE_SIZE as u64).unwrap_or(0);
        let whole = usize::try_from(len.saturating_add(skipped)).ok().and_then(NonZeroUsize::new);
        let whole = whole.ok_or_else(|| failed(Errno::ENOMEM))?;
        let from =
            i64::try_from(offset.saturating_sub(skipped)).map_err(|_| failed(Errno::EINVAL))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so no other mapping is touched; what another process does to the
        // bytes is the business of `Memory`'s contract.
        let base = unsafe { mmap(None, whole, protection, flags, file, from) }.map_err(failed)?;
        let skipped = usize::try_from(skipped).unwrap_or(0);
        Ok(Self { base: base.cast(), len: whole.get(), skipped })
    }

    /// Sets bits of the byte at `at`, which other processes read and clear.
    pub(super) fn set_bits(&self, at: usize, bits: u8) {
        let Ok(byte) = self.at(self.skipped.saturating_add(at), 1) else { return };
        // SAFETY: `at` found the byte inside the mapping; whoever shares it uses atomics too.
        unsafe { AtomicU8::from_ptr(byte) }.fetch_or(bits, Ordering::SeqCst);
    }
}

// SAFETY: the range was mapped when the value was made and is unmapped only on drop; nobody makes
// references into it but atomics.
unsafe impl Memory for Map {
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own, and everything that was lent of it borrowed it.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// A region of the machine's memory.
#[derive(Debug)]
pub struct Region {
    map: Map,
    pub(super) announced: Announced,
}

impl Region {
    pub(super) fn of(file: &File, announced: Announced) -> Result<Self, Error> {
        let Announced { guest, len, user, offset } = announced;
        if guest.checked_add(len).is_none() || user.checked_add(len).is_none() {
            let value = format!("{len} bytes at {guest:#x}, for the monitor at {user:#x}");
            return Err(fault("memory_past_end", value).into());
        }
        Ok(Self { map: Map::of(file, offset, len)?, announced })
    }

    /// Where in the mapping the machine's address `at` is, and how many bytes of the region follow.
    #[inline]
    pub(super) fn guest(&self, at: u64) -> Option<(usize, u64)> {
        self.place(at, self.announced.guest)
    }

    /// The same for the monitor's address `at`.
    pub(super) fn user(&self, at: u64) -> Option<(usize, u64)> {
        self.place(at, self.announced.user)
    }

    #[inline]
    fn place(&self, at: u64, first: u64) -> Option<(usize, u64)> {
        let into = at.checked_sub(first)?;
        let left = self.announced.len.checked_sub(into).filter(|left| *left > 0)?;
        Some((self.map.skipped.saturating_add(usize::try_from(into).ok()?), left))
    }
}

// SAFETY: the mapping's own, which the region owns.
unsafe impl Memory for Region {
    fn base(&self) -> *mut u8 {
        self.map.base()
    }

    fn len(&self) -> usize {
        self.map.len()
    }
}
