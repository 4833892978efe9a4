//! Moving bytes between an operation's pieces and files or our own memory, on this thread.
//!
//! Every engine that does not hand raw addresses to io_uring touches them here and nowhere else.
#![expect(unsafe_code, reason = "pieces are raw memory that another domain may be writing")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use ::uring::{Buffers, Piece};

/// Iovecs in one call (`IOV_MAX`).
const MOST_IOVECS: usize = 1024;

/// Which way a transfer goes, seen from the medium.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Into the pieces.
    Read,
    /// Out of them.
    Write,
}

/// Bytes in all pieces.
pub(super) fn total(held: &impl Buffers) -> u64 {
    held.pieces().iter().map(|piece| u64::from(piece.len)).sum()
}

/// Moves all of the pieces' bytes from or to the file at `offset`, as `preadv` and `pwritev` do.
/// Answers how many were moved; fewer than all where the file ends.
///
/// # Errors
///
/// A positive `errno`.
pub(super) fn transfer(
    file: &File,
    way: Way,
    offset: u64,
    held: &impl Buffers,
) -> Result<u64, i32> {
    let mut done = 0_u64;
    let total = total(held);
    let mut tries = 0_u32;
    while done < total {
        let moved = once(file, way, offset.saturating_add(done), held.pieces(), done);
        match u64::try_from(moved) {
            Ok(0) => break,
            Ok(moved) => done = done.saturating_add(moved),
            Err(_) => {
                let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                tries = tries.saturating_add(1);
                if !passing(errno) || tries > TRIES {
                    return Err(errno);
                }
            }
        }
    }
    Ok(done)
}

/// How often a call that was given up is made again.
pub(super) const TRIES: u32 = 1000;

/// Whether an error says only that an attempt was given up.
pub(super) const fn passing(errno: i32) -> bool {
    errno == libc::EINTR || errno == libc::EAGAIN
}

/// One call for what is left after the first `skip` bytes.
fn once(file: &File, way: Way, offset: u64, pieces: &[Piece], skip: u64) -> isize {
    let Ok(offset) = libc::off_t::try_from(offset) else { return -1 };
    if let ([piece], 0) = (pieces, skip) {
        let (fd, base, len) = (file.as_raw_fd(), piece.base.cast(), piece.len as usize);
        return match way {
            // SAFETY: whoever implements `Buffers` vouches for the piece; the kernel does the
            // access and answers a bad address with EFAULT.
            Way::Read => unsafe { libc::pread(fd, base, len, offset) },
            // SAFETY: as above.
            Way::Write => unsafe { libc::pwrite(fd, base, len, offset) },
        };
    }
    let mut iovecs = Vec::with_capacity(pieces.len().min(MOST_IOVECS));
    let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
    for piece in pieces {
        let len = piece.len as usize;
        if skip >= len {
            skip = skip.saturating_sub(len);
            continue;
        }
        let base = piece.base.wrapping_add(skip);
        iovecs.push(libc::iovec { iov_base: base.cast(), iov_len: len.saturating_sub(skip) });
        skip = 0;
        if iovecs.len() == MOST_IOVECS {
            break;
        }
    }
    let (fd, first) = (file.as_raw_fd(), iovecs.as_ptr());
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(0);
    match way {
        // SAFETY: the array has `count` entries, each within a piece that `Buffers` vouches for.
        Way::Read => unsafe { libc::preadv(fd, first, count, offset) },
        // SAFETY: as above.
        Way::Write => unsafe { libc::pwritev(fd, first, count, offset) },
    }
}

/// Calls `each` with every piece cut at multiples of `unit` bytes of the medium: the place on the
/// medium, and the address and length of the bytes that go there.
pub(super) fn cut(
    held: &impl Buffers,
    offset: u64,
    unit: u64,
    mut each: impl FnMut(u64, *mut u8, usize),
) {
    let mut at = offset;
    for piece in held.pieces() {
        let (mut base, mut left) = (piece.base, u64::from(piece.len));
        while left > 0 {
            let room = unit.saturating_sub(at.checked_rem(unit).unwrap_or(0)).max(1);
            let now = left.min(room);
            let bytes = usize::try_from(now).unwrap_or(0);
            each(at, base, bytes);
            base = base.wrapping_add(bytes);
            at = at.saturating_add(now);
            left = left.saturating_sub(now);
        }
    }
}

/// Copies `from` to an address that [`cut`] named for that many bytes or more.
pub(super) fn fill(into: *mut u8, from: &[u8]) {
    // SAFETY: the address came from a piece of an operation that reads, so the bytes are mapped and
    // may be written, and no reference to them exists. The two do not overlap: `from` is ours.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
}

/// Zeroes bytes at an address that [`cut`] named for that many.
pub(super) fn fill_zero(into: *mut u8, len: usize) {
    // SAFETY: as in `fill`.
    unsafe { ptr::write_bytes(into, 0, len) };
}

/// Copies from an address that [`cut`] named for `into.len()` bytes or more.
pub(super) fn take(from: *mut u8, into: &mut [u8]) {
    // SAFETY: as in `fill`, the other way round; what a peer writes meanwhile may tear, and nobody
    // draws conclusions from the bytes.
    unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
}

/// Memory of our own that is aligned as asked, reached through its address only.
#[derive(Debug)]
pub(super) struct Aligned {
    piece: Piece,
    layout: Layout,
}

impl Aligned {
    /// `len` zeroed bytes, more than none, at a multiple of `align`; `None` where there is no such
    /// memory.
    pub(super) fn new(len: u32, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len as usize, align).ok()?;
        if len == 0 {
            return None;
        }
        // SAFETY: the layout has a size other than zero.
        let base = unsafe { alloc_zeroed(layout) };
        (!base.is_null()).then_some(Self { piece: Piece { base, len, fixed: None }, layout })
    }

    pub(super) const fn pieces(&self) -> &[Piece] {
        std::slice::from_ref(&self.piece)
    }

    /// Copies between this memory and the pieces of `held`, `limit` bytes at most.
    pub(super) fn copy(&self, way: Way, held: &impl Buffers, limit: u64) {
        let limit = limit.min(u64::from(self.piece.len));
        cut(held, 0, u64::MAX, |at, theirs, len| {
            let len = (len as u64).min(limit.saturating_sub(at)) as usize;
            let ours = self.piece.base.wrapping_add(usize::try_from(at).unwrap_or(usize::MAX));
            if len == 0 {
                return;
            }
            match way {
                // SAFETY: `at + len` is at most our length, and `theirs` was named for `len` bytes
                // or more, mapped and without references to them; the two do not overlap.
                Way::Read => unsafe { ptr::copy_nonoverlapping(ours, theirs, len) },
                // SAFETY: as above.
                Way::Write => unsafe { ptr::copy_nonoverlapping(theirs, ours, len) },
            }
        });
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { dealloc(self.piece.base, self.layout) };
    }
}
