//! Descriptors whose being readable ends a wait.
//!
//! Each is polled once for each wait that finds it unpolled, in the same system call that waits. So a
//! descriptor that is left unread is reported again, which an edge-triggered poll would not do, and
//! one that becomes readable over and over while nobody waits costs nothing.

use io_uring::{opcode, squeue};

use crate::files::FileId;

/// A descriptor that a ring watches ([`Ring::watch`](crate::Ring::watch)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(u32);

struct Watch {
    id: WatchId,
    file: FileId,
    /// Whether it is reported on at all.
    wanted: bool,
    /// The kernel has a poll of it.
    armed: bool,
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
        self.watches.push(Watch { id, file, wanted: true, armed: false, ready: false });
        id
    }

    pub(crate) fn remove(&mut self, id: WatchId) -> Option<FileId> {
        let at = self.watches.iter().position(|watch| watch.id == id)?;
        Some(self.watches.swap_remove(at).file)
    }

    pub(crate) fn want(&mut self, id: WatchId, wanted: bool) {
        if let Some(watch) = self.watches.iter_mut().find(|watch| watch.id == id) {
            watch.wanted = wanted;
        }
    }

    /// What arms a watch that is wanted and not armed, and its number. To be handed to the kernel.
    pub(crate) fn arm(&mut self) -> Option<(WatchId, squeue::Entry)> {
        let watch = self.watches.iter_mut().find(|watch| watch.wanted && !watch.armed)?;
        watch.armed = true;
        let events = u32::from(libc::POLLIN.unsigned_abs());
        Some((watch.id, opcode::PollAdd::new(watch.file.fixed(), events).build()))
    }

    /// Takes in what the kernel says of watch `number`.
    pub(crate) fn progress(&mut self, number: u32, result: i32) {
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.id.0 == number) else {
            return;
        };
        watch.armed = false;
        // Whatever the kernel says, it is worth a look.
        watch.ready = true;
        if result < 0 && result.saturating_neg() != libc::ECANCELED {
            self.failed = Some(result.saturating_neg());
        }
    }

    pub(crate) fn take_ready(&mut self, id: WatchId) -> bool {
        match self.watches.iter_mut().find(|watch| watch.id == id) {
            Some(watch) => std::mem::take(&mut watch.ready),
            None => false,
        }
    }

    pub(crate) fn any_ready(&self) -> bool {
        self.watches.iter().any(|watch| watch.wanted && watch.ready)
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
