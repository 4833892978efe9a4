//! A journal's file, in our address space.
//!
//! Only this process writes to it while it lives, and its successor after it. The file's blocks are
//! allocated before it is mapped, so that a full file system is met then and not by a store. Nobody shortens it:
//! it is replaced as a whole, by another of its name.
#![expect(unsafe_code, reason = "mmap, munmap, and atomics in what they return")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use hypervisor::HostError;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::Cells;

/// A file's words.
#[derive(Debug)]
pub struct Map {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and its words are atomics.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// The first `words` words of `file`, which has as many.
    ///
    /// # Errors
    ///
    /// There is no address space, or the file has no such bytes.
    pub fn of(file: &File, words: usize) -> Result<Self, HostError> {
        let failed = |errno: Errno| HostError::new("map a journal", errno as i32);
        let bytes = words.saturating_mul(8);
        let len = NonZeroUsize::new(bytes).ok_or_else(|| failed(Errno::EINVAL))?;
        let have = file.metadata().map_err(|e| HostError::from_io("look at a journal", &e))?.len();
        if have < bytes as u64 {
            return Err(failed(Errno::EFBIG));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: no address is asked for, so that no other mapping is touched.
        let base = unsafe { mmap(None, len, protection, flags, file, 0) }.map_err(failed)?;
        Ok(Self { base: base.cast(), words })
    }

    #[inline]
    fn all(&self) -> &[AtomicU64] {
        // SAFETY: `of` mapped that many words, readable and writable, at a page's beginning; they stay
        // mapped for as long as `self` lives, and whoever else reaches them does so as atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Cells for Map {
    fn count(&self) -> usize {
        self.words
    }

    #[inline]
    fn load(&self, at: usize) -> u64 {
        self.all().get(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store(&self, at: usize, value: u64) {
        if let Some(word) = self.all().get(at) {
            word.store(value, Ordering::Release);
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own, and whatever was lent of it borrowed it.
        let _ = unsafe { munmap(self.base.cast(), self.words.saturating_mul(8)) };
    }
}
