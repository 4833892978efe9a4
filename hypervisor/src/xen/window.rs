//! Address space with pages of a Xen device in it: the one module here that maps and unmaps.
//!
//! A [`Window`] is plain shared memory (see [`Memory`]). What goes with it, and is to go after it,
//! travels inside.
#![expect(unsafe_code, reason = "mmap and munmap, and vouching for what they return")]

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::PAGE_SIZE;
use crate::memory::{Memory, OutOfRange};

/// A range of our address space, and what is let go of after it was unmapped.
#[derive(Debug)]
pub struct Window<K> {
    base: NonNull<u8>,
    len: NonZeroUsize,
    pub(super) kept: K,
}

// SAFETY: the range belongs to the process, not to a thread, and is reached through raw pointers.
unsafe impl<K: Send> Send for Window<K> {}
// SAFETY: as above.
unsafe impl<K: Sync> Sync for Window<K> {}

impl<K> Window<K> {
    /// `pages` pages of `file` from byte `offset` on.
    pub(super) fn of(
        file: BorrowedFd<'_>,
        offset: u64,
        pages: usize,
        writable: bool,
        kept: K,
    ) -> Result<Self, (Errno, K)> {
        let (Some(len), Ok(offset)) = (bytes(pages), i64::try_from(offset)) else {
            return Err((Errno::EINVAL, kept));
        };
        let protection = if writable { read_write() } else { ProtFlags::PROT_READ };
        // SAFETY: no address is asked for, so no other mapping is touched.
        match unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, file, offset) } {
            Ok(base) => Ok(Self { base: base.cast(), len, kept }),
            Err(errno) => Err((errno, kept)),
        }
    }

    /// `pages` zeroed pages of our own.
    pub(super) fn zeros(pages: usize, kept: K) -> nix::Result<Self> {
        let len = bytes(pages).ok_or(Errno::EINVAL)?;
        // SAFETY: no address is asked for, so no other mapping is touched.
        let base = unsafe { mmap_anonymous(None, len, read_write(), MapFlags::MAP_PRIVATE) }?;
        Ok(Self { base: base.cast(), len, kept })
    }

    /// Puts the page of `file` at byte `offset`, or a zeroed page of our own, where page `number`
    /// of a window of writable pages is. What was in that page is no longer reached here.
    pub(super) fn put(
        &self,
        number: usize,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> nix::Result<()> {
        let at = number
            .checked_mul(PAGE_SIZE)
            .and_then(|at| self.at(at, PAGE_SIZE).ok())
            .and_then(|at| NonZeroUsize::new(at.addr()));
        let (Some(at), Some(len)) = (at, bytes(1)) else { return Err(Errno::EINVAL) };
        match file {
            Some((file, offset)) => {
                let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
                let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
                // SAFETY: the page lies inside the range that is this value's own, is writable as
                // before, and stays mapped throughout: the kernel replaces it in one step.
                unsafe { mmap(Some(at), len, read_write(), flags, file, offset) }.map(drop)
            }
            None => {
                let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
                // SAFETY: as above.
                unsafe { mmap_anonymous(Some(at), len, read_write(), flags) }.map(drop)
            }
        }
    }
}

fn bytes(pages: usize) -> Option<NonZeroUsize> {
    pages.checked_mul(PAGE_SIZE).and_then(NonZeroUsize::new)
}

fn read_write() -> ProtFlags {
    ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
}

// SAFETY: the range was mapped when the value was made and is unmapped only on drop; what `put`
// replaces is replaced by pages that are as accessible. Nobody makes references into it.
unsafe impl<K> Memory for Window<K> {
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn len(&self) -> usize {
        self.len.get()
    }
}

impl<K> Window<K> {
    /// The bytes of one page, copied out.
    pub(super) fn page(&self, number: usize) -> Result<[u8; PAGE_SIZE], OutOfRange> {
        let mut bytes = [0; PAGE_SIZE];
        self.read_at(number.saturating_mul(PAGE_SIZE), &mut bytes)?;
        Ok(bytes)
    }
}

impl<K> Drop for Window<K> {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own and everything that was lent of it borrowed it.
        let unmapped = unsafe { munmap(self.base.cast(), self.len.get()) };
        if let Err(errno) = unmapped {
            super::leak::leaked(self.len.get() / PAGE_SIZE, "unmap pages", errno);
        }
    }
}
