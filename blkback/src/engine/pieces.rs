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
/// As many as an ordinary request has, which need no memory from elsewhere.
const FEW_IOVECS: usize = 16;

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

/// Reads all of the pieces' bytes from the file's pages in memory, if they are all there. The disk is not
/// waited for; the kernel may begin to read what was not there.
///
/// # Errors
///
/// A positive `errno`: `EAGAIN` where not all of it was there, `EOPNOTSUPP` where the file system cannot tell.
/// What was moved then means nothing.
pub(super) fn read_cached(file: &File, offset: u64, held: &impl Buffers) -> Result<u64, i32> {
    let (pieces, total) = (held.pieces(), total(held));
    let moved = with_iovecs(pieces, 0, |first, count| {
        let (fd, offset) = (file.as_raw_fd(), libc::off_t::try_from(offset).unwrap_or(-1));
        // SAFETY: the array has `count` entries, each a piece that `Buffers` vouches for; the kernel does
        // the access and answers a bad address with EFAULT.
        unsafe { libc::preadv2(fd, first, count, offset, libc::RWF_NOWAIT) }
    });
    match u64::try_from(moved) {
        Ok(moved) if moved == total => Ok(moved),
        Ok(_) => Err(libc::EAGAIN),
        Err(_) => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// One call for what is left after the first `skip` bytes.
fn once(file: &File, way: Way, offset: u64, pieces: &[Piece], skip: u64) -> isize {
    let Ok(offset) = libc::off_t::try_from(offset) else { return -1 };
    let fd = file.as_raw_fd();
    if let ([piece], 0) = (pieces, skip) {
        let (base, len) = (piece.base.cast(), piece.len as usize);
        return match way {
            // SAFETY: whoever implements `Buffers` vouches for the piece; the kernel does the
            // access and answers a bad address with EFAULT.
            Way::Read => unsafe { libc::pread(fd, base, len, offset) },
            // SAFETY: as above.
            Way::Write => unsafe { libc::pwrite(fd, base, len, offset) },
        };
    }
    with_iovecs(pieces, skip, |first, count| match way {
        // SAFETY: the array has `count` entries, each within a piece that `Buffers` vouches for.
        Way::Read => unsafe { libc::preadv(fd, first, count, offset) },
        // SAFETY: as above.
        Way::Write => unsafe { libc::pwritev(fd, first, count, offset) },
    })
}

/// Calls `call` with the pieces behind the first `skip` bytes as an array and its length; of very many
/// pieces with the first of them.
fn with_iovecs(
    pieces: &[Piece],
    skip: u64,
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> isize,
) -> isize {
    let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let rest = pieces.iter().filter_map(|piece| {
        let now = skip.min(piece.len as usize);
        skip = skip.saturating_sub(now);
        let (base, len) = (piece.base.wrapping_add(now), (piece.len as usize).saturating_sub(now));
        (len > 0).then_some(libc::iovec { iov_base: base.cast(), iov_len: len })
    });
    let count = |count: usize| libc::c_int::try_from(count).unwrap_or(0);
    if pieces.len() > FEW_IOVECS {
        let iovecs: Vec<libc::iovec> = rest.take(MOST_IOVECS).collect();
        return call(iovecs.as_ptr(), count(iovecs.len()));
    }
    let mut few = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; FEW_IOVECS];
    let filled = few.iter_mut().zip(rest).map(|(place, iovec)| *place = iovec).count();
    call(few.as_ptr(), count(filled))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of the given lengths, each in memory of its own.
    struct Scattered(
        #[expect(dead_code, reason = "what the pieces lie in")] Vec<Aligned>,
        Vec<Piece>,
    );

    // SAFETY: the memory lives as long as `self`, stays where it is, and is reached by its address only.
    unsafe impl Buffers for Scattered {
        fn pieces(&self) -> &[Piece] {
            &self.1
        }
    }

    fn scattered(lengths: impl IntoIterator<Item = u32>) -> Scattered {
        let memory: Vec<_> =
            lengths.into_iter().map(|len| Aligned::new(len, 512).unwrap()).collect();
        let pieces = memory.iter().flat_map(Aligned::pieces).copied().collect();
        Scattered(memory, pieces)
    }

    fn bytes(held: &Scattered) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in held.pieces() {
            let mut some = vec![0; piece.len as usize];
            take(piece.base, &mut some);
            all.append(&mut some);
        }
        all
    }

    #[test]
    fn what_is_cached_is_read_whole_or_not_at_all() {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..65536_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &content, 0).unwrap();
        for lengths in [vec![4096], vec![512, 1024, 4096], vec![512; 40]] {
            let (by_transfer, held) = (scattered(lengths.clone()), scattered(lengths));
            let total = total(&held);
            assert_eq!(transfer(&file, Way::Read, 512, &by_transfer), Ok(total));
            assert!(bytes(&by_transfer) == content[512..][..total as usize]);
            match read_cached(&file, 512, &held) {
                // Just written, and small.
                Ok(moved) => assert_eq!(moved, total),
                Err(errno) => {
                    assert_eq!(errno, libc::EOPNOTSUPP);
                    eprintln!(
                        "SKIPPED: the file system of {:?} has no reads that do not wait",
                        file
                    );
                    return;
                }
            }
            assert!(bytes(&held) == content[512..][..total as usize]);
            assert_eq!(read_cached(&file, 65536 - 256, &held), Err(libc::EAGAIN), "past the end");
        }
    }
}
