//! The table of files that the kernel keeps for the ring.
//!
//! An operation names its file by its place in this table. That spares the kernel a look-up per
//! operation, and it means that a descriptor closed by mistake cannot turn an operation that is
//! still queued against another file that got the same number: the table keeps the file itself.

#![expect(unsafe_code, reason = "a file's flags are changed by a call that takes any number")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use io_uring::types::Fixed;

/// Files that a ring can have registered.
pub(crate) const PLACES: u32 = 64;

/// A file that was registered with a ring ([`Ring::add_file`](crate::Ring::add_file)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(u32);

impl FileId {
    pub(crate) const fn place(self) -> u32 {
        self.0
    }

    pub(crate) const fn fixed(self) -> Fixed {
        Fixed(self.0)
    }
}

/// Which places are taken.
pub(crate) struct Files {
    free: Vec<u32>,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self { free: (0..PLACES).rev().collect() }
    }

    pub(crate) fn take(&mut self) -> Option<FileId> {
        self.free.pop().map(FileId)
    }

    pub(crate) fn give_back(&mut self, file: FileId) {
        if !self.free.contains(&file.0) {
            self.free.push(file.0);
        }
    }
}

/// Has every call about an open file answered at once.
pub(crate) fn never_wait(file: BorrowedFd<'_>) -> io::Result<()> {
    let checked = |answer: i32| match answer {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags),
    };
    // SAFETY: takes no memory.
    let flags = checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    let flags = flags | libc::O_NONBLOCK;
    // SAFETY: takes no memory.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}
