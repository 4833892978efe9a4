//! The table of files that the kernel keeps for the ring.
//!
//! An operation names its file by its place in this table. That spares the kernel a look-up per
//! operation, and it means that a descriptor closed by mistake cannot turn an operation that is
//! still queued against another file that got the same number: the table keeps the file itself.

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
