//! Packets between a file of the kernel's and granted pages, without a copy of ours.
//!
//! The kernel copies once, to or from memory that a backend may write to at that very moment. What is
//! handed over are addresses and never references.
#![expect(unsafe_code, reason = "the kernel reads and writes granted pages by address")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use hypervisor::memory::Memory;
use nix::errno::Errno;

/// Pieces of one packet, header included, with some to spare.
const MOST: usize = 24;

/// Addresses and lengths, in order.
struct Vectors {
    list: [libc::iovec; MOST],
    count: usize,
}

impl Vectors {
    const NONE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

    fn new(base: *mut u8, len: usize) -> Self {
        let mut vectors = Self { list: [Self::NONE; MOST], count: 0 };
        vectors.push(base, len);
        vectors
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        if let Some(room) = self.list.get_mut(self.count) {
            *room = libc::iovec { iov_base: base.cast(), iov_len: len };
            self.count = self.count.saturating_add(1);
        }
    }

    fn add<M: Memory>(&mut self, memory: &M, runs: impl Iterator<Item = (usize, usize)>) {
        for (offset, len) in runs {
            // Pieces lie inside their memory.
            let Ok(base) = memory.at(offset, len) else { return };
            self.push(base, len);
        }
    }

    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.count).unwrap_or(0)
    }
}

fn moved(bytes: isize) -> Result<usize, Errno> {
    Errno::result(bytes).map(|bytes| usize::try_from(bytes).unwrap_or(0))
}

/// Reads one packet: `head` from its beginning, the rest into `runs` of `memory`. Says how many bytes,
/// and one more than there is room for where the packet is longer than that.
pub(super) fn read<M: Memory>(
    file: BorrowedFd<'_>,
    head: &mut [u8],
    memory: &M,
    runs: impl Iterator<Item = (usize, usize)>,
) -> Result<usize, Errno> {
    let mut vectors = Vectors::new(head.as_mut_ptr(), head.len());
    vectors.add(memory, runs);
    // Files of packets cut off what does not fit, without a word.
    let mut beyond = [0_u8];
    vectors.push(beyond.as_mut_ptr(), beyond.len());
    // SAFETY: the first vector is `head`, which is borrowed until the call returns, and the last is
    // `beyond`, which is not looked at before; `at` found each other inside `memory`, which stays mapped and writable while it is borrowed, and into which no
    // reference exists. The list has `count` entries.
    moved(unsafe { libc::readv(file.as_raw_fd(), vectors.list.as_ptr(), vectors.count()) })
}

/// Writes one packet: `head`, and then `runs` of `memory`. Says how many bytes.
pub(super) fn write<M: Memory>(
    file: BorrowedFd<'_>,
    head: &[u8],
    memory: &M,
    runs: impl Iterator<Item = (usize, usize)>,
) -> Result<usize, Errno> {
    // The kernel only reads.
    let mut vectors = Vectors::new(head.as_ptr().cast_mut(), head.len());
    vectors.add(memory, runs);
    // SAFETY: as in `read`; nothing is written through these addresses.
    moved(unsafe { libc::writev(file.as_raw_fd(), vectors.list.as_ptr(), vectors.count()) })
}
