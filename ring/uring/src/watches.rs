//! Descriptors whose becoming readable the ring reports.
//!
//! Each has one multishot poll with the kernel, which ends when the kernel has no room for its
//! completions; it is then armed again, and arming reports at once what became readable
//! meanwhile, so nothing is missed.

use io_uring::{opcode, squeue};

use crate::files::FileId;

/// A descriptor that a ring watches ([`Ring::watch`](crate::Ring::watch)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(u32);

struct Watch {
    id: WatchId,
    file: FileId,
    ready: bool,
}

/// All of a ring's watches; there are few.
pub(crate) struct Watches {
    watches: Vec<Watch>,
    next: u32,
    /// The last error with which the kernel refused to watch, a positive `errno`.
    pub(crate) failed: Option<i32>,
}

impl Watches {
    pub(crate) const fn new() -> Self {
        Self { watches: Vec::new(), next: 0, failed: None }
    }

    pub(crate) fn add(&mut self, file: FileId) -> WatchId {
        let id = WatchId(self.next);
        // Never the number of one that is being cancelled, whose last completion is yet to come.
        self.next = self.next.wrapping_add(1);
        self.watches.push(Watch { id, file, ready: false });
        id
    }

    pub(crate) fn remove(&mut self, id: WatchId) -> Option<FileId> {
        let at = self.watches.iter().position(|watch| watch.id == id)?;
        Some(self.watches.swap_remove(at).file)
    }

    /// What arms the watch.
    pub(crate) fn entry(&self, id: WatchId) -> Option<squeue::Entry> {
        let watch = self.watches.iter().find(|watch| watch.id == id)?;
        let events = u32::from(libc::POLLIN.unsigned_abs());
        Some(opcode::PollAdd::new(watch.file.fixed(), events).multi(true).build())
    }

    /// Takes in what the kernel says of watch `number`; whether it must be armed again.
    pub(crate) fn progress(&mut self, number: u32, result: i32, more: bool) -> Option<WatchId> {
        let watch = self.watches.iter_mut().find(|watch| watch.id.0 == number)?;
        // Whatever the kernel says, it is worth a look.
        watch.ready = true;
        if result < 0 && result.saturating_neg() != libc::ECANCELED {
            self.failed = Some(result.saturating_neg());
            return None;
        }
        (!more).then_some(watch.id)
    }

    pub(crate) fn take_ready(&mut self, id: WatchId) -> bool {
        match self.watches.iter_mut().find(|watch| watch.id == id) {
            Some(watch) => std::mem::take(&mut watch.ready),
            None => false,
        }
    }

    pub(crate) fn any_ready(&self) -> bool {
        self.watches.iter().any(|watch| watch.ready)
    }

    pub(crate) fn ids(&self) -> Vec<WatchId> {
        self.watches.iter().map(|watch| watch.id).collect()
    }
}

impl WatchId {
    pub(crate) const fn number(self) -> u32 {
        self.0
    }
}
