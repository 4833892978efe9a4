//! One thread's io_uring.
//!
//! `begin` only writes a submission entry; `kick` hands all that were written to the kernel in one
//! system call; `completed` looks at the completion queue and enters the kernel only where it has
//! said that there is work to finish in this thread (`IORING_SETUP_TASKRUN_FLAG`). The ring belongs
//! to the thread that made it (`IORING_SETUP_SINGLE_ISSUER`, `IORING_SETUP_DEFER_TASKRUN`).
//!
//! What an operation holds moves into the ring and comes back with the completion. A ring that is
//! dropped cancels what can be cancelled and waits for the rest, so that no memory is freed into
//! which the kernel still reads.
//!
//! Source: `io_uring_setup(2)`, `io_uring_enter(2)`, `io_uring_register(2)`; Linux 6.1 or newer.
#![expect(unsafe_code, reason = "submission entries name raw memory that the slots keep alive")]

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use crate::buffers::Buffers;
use crate::files::{self, FileId, Files, PLACES};
use crate::operation::{Completed, Operation, Unavailable, errno_of};
use crate::slots::{Progress, Slots};
use crate::watches::{WatchId, Watches};

/// Room for watches and cancellations beside the operations.
const SPARE_ENTRIES: u32 = 8;

/// In a completion's user data: it is a watch's, and the rest is its number.
const WATCH: u64 = 1 << 32;
/// In a completion's user data: nobody is waiting for it.
const NOBODY: u64 = 1 << 33;

/// A ring with the kernel, for one thread.
pub struct Ring<T: Buffers> {
    io: IoUring,
    slots: Slots<T>,
    watches: Watches,
    files: Files,
    /// Entries for which the submission queue had no room.
    backlog: VecDeque<squeue::Entry>,
    /// The kernel takes submissions from the thread that made the ring only.
    not_send: PhantomData<*mut ()>,
}

impl<T: Buffers> Ring<T> {
    /// A ring of this thread for up to `depth` operations at a time.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] where this kernel has no io_uring, forbids it, or has one too old.
    pub fn new(depth: u32) -> Result<Self, Unavailable> {
        let depth = depth.clamp(1, 16384);
        let io = IoUring::builder()
            .dontfork()
            .setup_clamp()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(depth.saturating_add(SPARE_ENTRIES))
            .map_err(|error| Unavailable::new("set up a ring", &error))?;
        if !io.params().is_feature_nodrop() || !io.params().is_feature_ext_arg() {
            let old = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(Unavailable::new("find completions kept and waits timed", &old));
        }
        io.submitter()
            .register_files_sparse(PLACES)
            .map_err(|error| Unavailable::new("make a table of files", &error))?;
        Ok(Self {
            io,
            slots: Slots::new(depth),
            watches: Watches::new(),
            files: Files::new(),
            backlog: VecDeque::new(),
            not_send: PhantomData,
        })
    }

    /// Registers a file for operations. The ring keeps the open file description alive until
    /// [`remove_file`](Self::remove_file) or its own end; the descriptor may be closed at once.
    ///
    /// # Errors
    ///
    /// The table is full (`ENFILE`), or the kernel will not have the file.
    pub fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<FileId> {
        let full = || io::Error::from_raw_os_error(libc::ENFILE);
        let id = self.files.take().ok_or_else(full)?;
        match self.io.submitter().register_files_update(id.place(), &[file.as_raw_fd()]) {
            Ok(_) => Ok(id),
            Err(error) => {
                self.files.give_back(id);
                Err(error)
            }
        }
    }

    /// Registers a file that has packets, to be received and sent. Such a file is made non-blocking: what
    /// can be waited for without a thread, the kernel finds out when it is registered.
    ///
    /// # Errors
    ///
    /// As of [`add_file`](Self::add_file).
    pub fn add_packets(&mut self, file: BorrowedFd<'_>) -> io::Result<FileId> {
        files::never_wait(file)?;
        self.add_file(file)
    }

    /// Takes a file out of the table. Operations that were kicked already keep it alive.
    ///
    /// # Errors
    ///
    /// The kernel would not.
    pub fn remove_file(&mut self, file: FileId) -> io::Result<()> {
        self.io.submitter().register_files_update(file.place(), &[-1])?;
        self.files.give_back(file);
        Ok(())
    }

    /// Makes an empty table of `count` registered buffers, once in a ring's life.
    ///
    /// # Errors
    ///
    /// The kernel would not.
    pub fn make_buffers(&mut self, count: u16) -> io::Result<()> {
        self.io.submitter().register_buffers_sparse(u32::from(count))?;
        self.slots.fixed = count;
        Ok(())
    }

    /// Makes `slot` of the table of registered buffers stand for `len` bytes from `base` on, or with
    /// a length of zero for nothing. The kernel pins the pages: what is unmapped while registered
    /// goes on existing until the slot is filled anew, and transfers that name it go to those pages.
    ///
    /// # Errors
    ///
    /// There is no such slot, or the pages cannot be pinned.
    pub fn set_buffer(&mut self, slot: u16, base: *mut u8, len: usize) -> io::Result<()> {
        let base = if len == 0 { std::ptr::null_mut() } else { base };
        let buffer = libc::iovec { iov_base: base.cast(), iov_len: len };
        // SAFETY: the kernel pins the pages that are mapped there now, or refuses; it reads or
        // writes them only for operations, whose `Buffers` vouch for the memory they name. That the
        // range may be unmapped while registered costs those transfers their target, not memory
        // that belongs to anybody else: pinned pages are not reused.
        unsafe { self.io.submitter().register_buffers_update(u32::from(slot), &[buffer], None) }
    }

    /// Takes an operation on, to be handed to the kernel with the next [`kick`](Self::kick),
    /// [`wait`](Self::wait) or [`completed`](Self::completed) that enters it.
    ///
    /// # Errors
    ///
    /// As many as the ring was made for are under way; what was held comes back.
    pub fn begin(&mut self, operation: Operation, held: T) -> Result<(), T> {
        let entry = self.slots.begin(operation, held)?;
        self.push(entry);
        Ok(())
    }

    /// Operations begun and not yet given back.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.slots.under_way()
    }

    /// Hands everything that was begun to the kernel.
    ///
    /// # Errors
    ///
    /// The ring is beyond use.
    pub fn kick(&mut self) -> io::Result<()> {
        self.flush_backlog();
        if self.io.submission().is_empty() {
            return Ok(());
        }
        passing(self.io.submitter().submit())
    }

    /// Appends what has completed. A system call is made only where the kernel says that there is
    /// something to be had by one.
    ///
    /// # Errors
    ///
    /// The ring is beyond use.
    pub fn completed(&mut self, into: &mut Vec<Completed<T>>) -> io::Result<()> {
        let queue = self.io.submission();
        let asks = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if asks {
            self.flush_backlog();
            // Takes what was begun along, as it goes there anyway.
            passing(self.io.submitter().submit())?;
        }
        self.reap(into);
        if let Some(errno) = self.watches.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // What was cut short goes on at once: the caller has nothing new and may not kick.
        if self.backlog.is_empty() { Ok(()) } else { self.kick() }
    }

    /// Hands everything that was begun to the kernel and sleeps until something has completed, a
    /// watched descriptor is readable, or `timeout` has passed; sometimes wakes early.
    ///
    /// # Errors
    ///
    /// The ring is beyond use.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.flush_backlog();
        let something = !self.io.completion().is_empty() || self.watches.any_ready();
        if something || timeout.is_some_and(|timeout| timeout.is_zero()) {
            return self.kick();
        }
        self.listen();
        let submitter = self.io.submitter();
        passing(match timeout {
            None => submitter.submit_and_wait(1),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
        })
    }

    /// Whether completions lie ready to be taken, as far as can be told without a system call.
    #[must_use]
    pub fn has_completions(&mut self) -> bool {
        let queue = self.io.submission();
        let asks = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        asks || !self.io.completion().is_empty()
    }

    /// Has [`wait`](Self::wait) end when `descriptor` is readable. The ring keeps it alive until
    /// [`unwatch`](Self::unwatch) or its own end.
    ///
    /// # Errors
    ///
    /// The table of files is full (`ENFILE`), or the kernel will not have it.
    pub fn watch(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<WatchId> {
        let file = self.add_file(descriptor)?;
        Ok(self.watches.add(file))
    }

    /// Reports on it no longer, and lets go of it.
    ///
    /// # Errors
    ///
    /// The ring is beyond use.
    pub fn unwatch(&mut self, id: WatchId) -> io::Result<()> {
        let Some(file) = self.watches.remove(id) else { return Ok(()) };
        self.push(opcode::PollRemove::new(watch_data(id)).build().user_data(NOBODY));
        // The poll keeps the descriptor alive until the kernel has seen this, and until the poll's end
        // was seen to in this thread.
        self.kick()?;
        if self.io.submission().taskrun() {
            passing(self.io.submitter().submit())?;
        }
        self.remove_file(file)
    }

    /// Has the kernel look at all watched descriptors from the next [`kick`](Self::kick) on, so that
    /// [`take_ready`](Self::take_ready) can tell without a system call and without a wait.
    pub fn listen(&mut self) {
        while let Some((id, entry)) = self.watches.arm() {
            self.push(entry.user_data(watch_data(id)));
        }
    }

    /// Whether a watched descriptor is to end waits: every one is until told otherwise. A poll that
    /// the kernel has already stays with it and may end one wait.
    pub fn want(&mut self, id: WatchId, wanted: bool) {
        self.watches.want(id, wanted);
    }

    /// Whether a watched descriptor was readable in a wait, or since [`listen`](Self::listen), and
    /// this was not asked since.
    pub fn take_ready(&mut self, id: WatchId) -> bool {
        self.watches.take_ready(id)
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.flush_backlog();
    }

    fn flush_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: what an operation's entry names is kept by its slot, bytes and iovecs both,
            // until its completion is seen; other entries name no memory.
            if unsafe { self.io.submission().push(entry) }.is_err() {
                // An error is met again, and reported, by whoever enters the kernel next.
                let _ = self.io.submitter().submit();
                if self.io.submission().is_full() {
                    return;
                }
                continue;
            }
            self.backlog.pop_front();
        }
    }

    /// Takes in all completions in the queue.
    fn reap(&mut self, into: &mut Vec<Completed<T>>) {
        let Self { io, slots, watches, backlog, .. } = self;
        for entry in io.completion() {
            let data = entry.user_data();
            let number = (data & u64::from(u32::MAX)) as u32;
            match data & !u64::from(u32::MAX) {
                0 => match slots.progress(number, entry.result()) {
                    Some(Progress::Over(completed)) => into.push(completed),
                    Some(Progress::Again(entry)) => backlog.push_back(entry),
                    None => {}
                },
                WATCH => watches.progress(number, entry.result()),
                _ => {}
            }
        }
    }

    /// Waits until the kernel has nothing of ours any more.
    fn drain(&mut self) -> io::Result<()> {
        for id in self.watches.ids() {
            self.unwatch(id)?;
        }
        if self.slots.under_way() == 0 {
            return self.kick();
        }
        self.push(opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(NOBODY));
        let mut over = Vec::new();
        while self.slots.under_way() > 0 {
            self.wait(None)?;
            self.completed(&mut over)?;
            over.clear();
        }
        Ok(())
    }
}

impl<T: Buffers> Drop for Ring<T> {
    fn drop(&mut self) {
        if self.drain().is_err() {
            // Whatever the kernel still has stays where it is for good.
            self.slots.leak();
        }
        // Closing the ring alone would let go of these some time later, in a worker of the kernel.
        let submitter = self.io.submitter();
        let _ = submitter.unregister_files();
        let _ = submitter.unregister_buffers();
    }
}

fn watch_data(id: WatchId) -> u64 {
    WATCH | u64::from(id.number())
}

/// Whether an error in entering the kernel passes by itself.
fn passing(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        // Out of time; a signal; the kernel out of memory; completions to be taken first.
        Err(error)
            if [libc::ETIME, libc::EINTR, libc::EAGAIN, libc::EBUSY]
                .contains(&errno_of(&error)) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
