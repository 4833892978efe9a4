//! Reaching bytes that another domain may be writing at the same moment.
//!
//! No reference into such memory is ever made: the compiler would be free to believe that what it
//! reads twice is the same. Bytes are copied out or in, once, through raw pointers.
//! This module and the ring's index accesses are the only places that touch them.
#![expect(unsafe_code, reason = "shared pages are reached through raw pointers only")]

use alloc::sync::Arc;
use core::ptr;

/// Memory that is, or may be, shared with another domain.
///
/// # Safety
///
/// For as long as `self` lives, `base()` must point to `len()` bytes that stay mapped, readable
/// and, unless the mapping is of read-only grants, writable; both must always answer the same;
/// and no Rust reference into those bytes may exist anywhere.
pub unsafe trait Memory {
    /// The first byte; page-aligned.
    fn base(&self) -> *mut u8;

    /// Bytes from `base` on.
    fn len(&self) -> usize;

    /// Whether there is nothing to reach.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `into.len()` bytes from `offset` on out of the shared memory.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] where the memory ends before that; nothing was copied.
    fn read_at(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfRange> {
        let from = self.at(offset, into.len())?;
        // SAFETY: `at` checked that the bytes from `from` on lie inside this memory, which stays
        // mapped while `self` is borrowed; `into` is ours alone, so the two cannot overlap. What a
        // peer writes meanwhile may tear; every caller treats the result as untrusted bytes.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies `from` into the shared memory at `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] where the memory ends before that; nothing was copied.
    fn write_at(&self, offset: usize, from: &[u8]) -> Result<(), OutOfRange> {
        let into = self.at(offset, from.len())?;
        // SAFETY: as in `read_at`, the other way round.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    /// Fills `len` bytes from `offset` on with `byte`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] where the memory ends before that; nothing was written.
    fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), OutOfRange> {
        let into = self.at(offset, len)?;
        // SAFETY: `at` checked that the bytes lie inside this memory.
        unsafe { ptr::write_bytes(into, byte, len) };
        Ok(())
    }

    /// The address of `len` bytes at `offset`, to hand to the kernel.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] where the memory ends before that.
    fn at(&self, offset: usize, len: usize) -> Result<*mut u8, OutOfRange> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(self.base().wrapping_add(offset)),
            _ => Err(OutOfRange { offset, len, have: self.len() }),
        }
    }
}

// SAFETY: what is shared is the memory's owner, which stays where it is.
unsafe impl<M: Memory> Memory for Arc<M> {
    fn base(&self) -> *mut u8 {
        (**self).base()
    }

    fn len(&self) -> usize {
        (**self).len()
    }
}

/// Bytes were asked for that the memory does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} reach past the end of {have} bytes of shared memory")]
pub struct OutOfRange {
    /// Where they began, in bytes.
    pub offset: usize,
    /// How many they were.
    pub len: usize,
    /// How many there are.
    pub have: usize,
}
