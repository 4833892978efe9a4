//! Packets by a system call each, where the kernel has no better way for their file.
//!
//! A kernel before 6.4 has nothing of a TAP "at once or not at all" (`RWF_NOWAIT` is refused with
//! `EOPNOTSUPP`), and a ring waits for a non-blocking file in its place. `readv` and `writev` do not: from the
//! first refusal on, operations on such a file are done by them, in the order in which they were begun.
//! Whoever began them sees no difference but in speed.
//!
//! Before: `ring` met a refusal, or was told of an operation on a file of which it is known. Source:
//! `readv(2)`, `tun_chr_read_iter` (Linux 6.1).
#![expect(unsafe_code, reason = "the kernel reads and writes what raw addresses name")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use libc::iovec;

use crate::buffers::Buffers;
use crate::files::{FileId, PLACES};
use crate::operation::{Operation, errno_of};
use crate::slots::Slots;

/// Files that have packets, and what is to be done and was done without the ring.
#[derive(Default)]
pub(crate) struct Direct {
    files: Vec<Kept>,
    /// Slots whose operations are to be done, in order.
    begun: VecDeque<u32>,
    /// Slots whose operations were done, and what came of them as a completion has it.
    done: VecDeque<(u32, i32)>,
}

/// A file that has packets.
struct Kept {
    id: FileId,
    file: OwnedFd,
    /// Whether the ring cannot be used.
    refused: bool,
}

impl Direct {
    /// Keeps a file that is registered as `id` at hand.
    pub(crate) fn keep(&mut self, id: FileId, file: BorrowedFd<'_>) -> io::Result<()> {
        let file = file.try_clone_to_owned()?;
        debug_assert!(self.files.len() < PLACES as usize, "forgotten with its place");
        self.files.push(Kept { id, file, refused: false });
        Ok(())
    }

    /// Lets go of it.
    pub(crate) fn forget(&mut self, id: FileId) {
        self.files.retain(|kept| kept.id != id);
    }

    /// Takes on the operation in slot `index` where it is known that the ring cannot do it.
    pub(crate) fn takes(&mut self, index: u32, operation: Operation) -> bool {
        let takes = self.kept(operation).is_some_and(|kept| kept.refused);
        if takes {
            self.begun.push_back(index);
        }
        takes
    }

    /// Takes on the operation in slot `index`, which the kernel refused, where another way may do.
    pub(crate) fn takes_over(&mut self, index: u32, operation: Operation) -> bool {
        let Some(kept) = self.kept(operation) else { return false };
        if !kept.refused {
            if let Err(errno) = never_wait(kept.file.as_raw_fd()) {
                self.done.push_back((index, errno.saturating_neg()));
                return true;
            }
            kept.refused = true;
        }
        self.begun.push_back(index);
        true
    }

    /// The file of an operation that moves a packet.
    fn kept(&mut self, operation: Operation) -> Option<&mut Kept> {
        let (Operation::Receive { file } | Operation::Send { file }) = operation else {
            return None;
        };
        self.files.iter_mut().find(|kept| kept.id == file)
    }

    /// Does what is to be done.
    pub(crate) fn run<T: Buffers>(&mut self, slots: &mut Slots<T>) {
        while let Some(index) = self.begun.pop_front() {
            let Some((operation, runs)) = slots.runs(index) else { continue };
            let moved = match self.kept(operation) {
                Some(kept) => transfer(kept.file.as_raw_fd(), operation, runs),
                // As the kernel says of a place in its table that was emptied meanwhile.
                None => -libc::EBADF,
            };
            self.done.push_back((index, moved));
        }
    }

    /// One that was done.
    pub(crate) fn done(&mut self) -> Option<(u32, i32)> {
        self.done.pop_front()
    }

    /// Whether there is anything to do or to tell.
    pub(crate) fn is_idle(&self) -> bool {
        self.begun.is_empty() && self.done.is_empty()
    }
}

/// Moves a packet, if one can be at once: bytes, or a negative errno.
fn transfer(file: RawFd, operation: Operation, runs: &[iovec]) -> i32 {
    let (first, count) = (runs.as_ptr(), i32::try_from(runs.len()).unwrap_or(i32::MAX));
    let moved = match operation {
        // SAFETY: the array has `count` entries. What they name is kept by the operation's slot, as
        // `Buffers` has it, and is writable, because it is to be filled; the call keeps nothing of it.
        Operation::Receive { .. } => unsafe { libc::readv(file, first, count) },
        // SAFETY: the same, and it is only read.
        _ => unsafe { libc::writev(file, first, count) },
    };
    if moved < 0 {
        return errno_of(&io::Error::last_os_error()).saturating_neg();
    }
    i32::try_from(moved).unwrap_or(i32::MAX)
}

/// Has every call about an open file answered at once.
fn never_wait(file: RawFd) -> Result<(), i32> {
    let failed = |answer: i32| match answer {
        -1 => Err(errno_of(&io::Error::last_os_error())),
        flags => Ok(flags),
    };
    // SAFETY: takes no memory.
    let flags = failed(unsafe { libc::fcntl(file, libc::F_GETFL) })?;
    // SAFETY: takes no memory.
    failed(unsafe { libc::fcntl(file, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}
