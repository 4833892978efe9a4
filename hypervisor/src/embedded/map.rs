//! Memory files, and where they are mapped: the one module here that asks for address space.
//!
//! A [`Map`] is plain shared memory (see [`Memory`]). Its words that both ends use as atomics are
//! reached through [`Map::word`] and [`Map::entry`], which check range and alignment.
//! Every file mapped here is sealed against shrinking before it is handed to anybody, so a mapping
//! stays backed whatever another process does.
#![expect(unsafe_code, reason = "mmap, munmap, and atomics in what they return")]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::memory::Memory;
use crate::{HostError, PAGE_SIZE};

/// A new memory file of `len` zero bytes whose size can never change again.
pub(crate) fn sealed_file(name: &str, len: u64) -> Result<OwnedFd, HostError> {
    let failed =
        |errno: Errno| HostError::new(format!("make {len} bytes of memory '{name}'"), errno as i32);
    let file =
        memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).map_err(failed)?;
    let size = i64::try_from(len).map_err(|_| failed(Errno::EFBIG))?;
    nix::unistd::ftruncate(&file, size).map_err(failed)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(failed)?;
    Ok(file)
}

/// A range of our address space backed by a memory file, or by nothing but zeros.
#[derive(Debug)]
pub(crate) struct Map {
    base: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread; what is in it is only reached
// through raw pointers and atomics.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// All of `file`, of which the first `len` bytes exist and always will (it is sealed).
    pub(crate) fn of(file: impl AsFd, len: usize, writable: bool) -> Result<Self, HostError> {
        let len = NonZeroUsize::new(len).ok_or_else(|| failed(len, Errno::EINVAL))?;
        // SAFETY: no address is asked for, so no other mapping is touched; what another process
        // does to the bytes is the business of `Memory`'s contract.
        let base = unsafe { mmap(None, len, protection(writable), MapFlags::MAP_SHARED, file, 0) }
            .map_err(|errno| failed(len.get(), errno))?;
        Ok(Self { base: base.cast(), len })
    }

    /// `len` zero bytes of our own, of which only those that are touched cost memory.
    pub(crate) fn zeros(len: usize) -> Result<Self, HostError> {
        Self::anonymous(len, protection(true))
    }

    /// Pages of `file` side by side in the order of `frames`.
    pub(crate) fn gather(
        file: impl AsFd,
        frames: impl ExactSizeIterator<Item = u32>,
        writable: bool,
    ) -> Result<Self, HostError> {
        let len = frames.len().saturating_mul(PAGE_SIZE);
        let map = Self::anonymous(len, ProtFlags::PROT_NONE)?;
        for (page, frame) in frames.enumerate() {
            let at = map.at(page.saturating_mul(PAGE_SIZE), PAGE_SIZE);
            let at = at.ok().and_then(|at| NonZeroUsize::new(at.addr()));
            let one = NonZeroUsize::new(PAGE_SIZE).ok_or_else(|| failed(len, Errno::EINVAL))?;
            let from = i64::from(frame).saturating_mul(one.get() as i64);
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            // SAFETY: `at` is a page inside the range that `map` owns and that nobody has been
            // told of yet; only that page is replaced.
            unsafe { mmap(at, one, protection(writable), flags, &file, from) }
                .map_err(|errno| failed(len, errno))?;
        }
        Ok(map)
    }

    fn anonymous(len: usize, protection: ProtFlags) -> Result<Self, HostError> {
        let len = NonZeroUsize::new(len).ok_or_else(|| failed(len, Errno::EINVAL))?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so no other mapping is touched.
        let base = unsafe { mmap_anonymous(None, len, protection, flags) }
            .map_err(|errno| failed(len.get(), errno))?;
        Ok(Self { base: base.cast(), len })
    }

    /// The 32-bit word number `index`.
    pub(crate) fn word(&self, index: usize) -> Option<&AtomicU32> {
        let at = self.at(index.checked_mul(4)?, 4).ok()?;
        // SAFETY: `at` checked that the four bytes are mapped for as long as `self` is, the base is
        // page-aligned and the offset a multiple of four; whoever shares the word uses atomics too.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// The 64-bit word number `index`.
    pub(crate) fn entry(&self, index: usize) -> Option<&AtomicU64> {
        let at = self.at(index.checked_mul(8)?, 8).ok()?;
        // SAFETY: as in `word`, with eight bytes.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) })
    }
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ }
}

fn failed(len: usize, errno: Errno) -> HostError {
    HostError::new(format!("map {len} bytes"), errno as i32)
}

// SAFETY: the range was mapped when the value was made and is unmapped only on drop; nobody makes
// references into it but atomics, which allow for other writers.
unsafe impl Memory for Map {
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn len(&self) -> usize {
        self.len.get()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own and everything that was lent of it borrowed it.
        // Failure would mean that it is not mapped, which needs no unmapping.
        let _ = unsafe { munmap(self.base.cast(), self.len.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_cannot_shrink() {
        let file = sealed_file("test", 8192).unwrap();
        assert!(nix::unistd::ftruncate(&file, 4096).is_err());
        assert!(nix::unistd::ftruncate(&file, 16384).is_err());
    }

    #[test]
    fn gathered_pages_lie_in_the_order_named() {
        let file = sealed_file("test", 4 * 4096).unwrap();
        let whole = Map::of(&file, 4 * 4096, true).unwrap();
        for page in 0..4_u8 {
            whole.fill(usize::from(page) * 4096, 4096, page).unwrap();
        }
        let gathered = Map::gather(&file, [3, 0, 3].into_iter(), true).unwrap();
        let mut seen = [9; 1];
        for (at, expected) in [(0, 3), (4096, 0), (8192, 3)] {
            gathered.read_at(at, &mut seen).unwrap();
            assert_eq!(seen[0], expected);
        }
        gathered.write_at(8192, &[7]).unwrap();
        whole.read_at(3 * 4096, &mut seen).unwrap();
        assert_eq!(seen[0], 7);
    }

    #[test]
    fn words_end_where_the_map_ends() {
        let map = Map::zeros(4096).unwrap();
        assert!(map.word(1023).is_some());
        assert!(map.word(1024).is_none());
        assert!(map.entry(511).is_some());
        assert!(map.entry(512).is_none());
        assert!(map.word(usize::MAX).is_none());
    }
}
