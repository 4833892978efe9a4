//! An image through io_uring.
//!
//! All that a queue takes on between two kicks goes to the kernel in one call; completions and the
//! guest's event come back by the same ring. Only what is no more than a copy is made on this thread at once:
//! to and from a file that lies in memory ([`Transfers::Resident`]), reads of what is in the page cache,
//! and writes into it, which io_uring would hand to a worker for nothing.
//!
//! A flush goes to a worker of the kernel, as `fdatasync` has no asynchronous form; the queue goes on
//! meanwhile. Nothing here orders it with writes under way: whoever submits does.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use ::uring::{Buffers, Completed, FileId, Operation as Asked, Ring, Unavailable, WatchId};
use hypervisor::HostError;

use crate::engine::blocking::{file_of, flush, transfer, whole};
use crate::engine::held::Held;
use crate::engine::offload::{Offload, Task};
use crate::engine::pieces::{self, Way};
use crate::engine::promptly::{Cached, Lone, Pace, Times};
use crate::engine::zero::{Manner, no_such_way};
use crate::engine::{Engine, Finished, Operation, Woken};
use crate::image::{Kind, Media, Transfers};

/// Transfers past the page cache that are begun together. A disk that has nothing to do is to have the
/// first of many while the others are still made ready; and of no more than two at a time the
/// kernel (its `IO_PLUG_THRESHOLD`) holds none back.
const TOGETHER: u32 = 2;
/// What is copied rather than pinned, in bytes, where the kernel does not know the guest's pages as ordinary
/// memory. Those that gntdev maps have page table entries of a kind of their own: to pin one it takes a lock and
/// asks the mapping's owner, and it will not register them.
const COPIED: u64 = 16 << 10;
/// Registered buffers that a queue may have.
const FIXED: u16 = 1024;

/// Why there is no such engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoUring {
    /// This machine has no io_uring for us; [`Blocking`](crate::engine::blocking::Blocking) works.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Something else failed, which would fail there too.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// One queue's way to an image by io_uring. It belongs to the thread that made it.
pub struct Uring<T: Buffers> {
    ring: Ring<Held<T>>,
    file: FileId,
    media: Arc<Media>,
    queue: u16,
    depth: usize,
    watched: Vec<(RawFd, WatchId)>,
    /// Done on this thread.
    done: Vec<Finished<T>>,
    /// Taken from the ring and not settled yet; kept for its allocation.
    completed: Vec<Completed<Held<T>>>,
    offload: Option<(Offload<Held<T>>, WatchId)>,
    /// `None` until the table of registered buffers is first asked for.
    fixed: Option<bool>,
    /// Transfers past the page cache of up to so many bytes are copied.
    copied: u64,
    /// Transfers that the kernel has not been given yet.
    unkicked: u32,
    cached: Cached,
    pace: Pace,
    lone: Lone,
    times: Times,
}

impl<T: Buffers> Uring<T> {
    /// Queue `queue` of `media`, for up to `depth` operations at a time, of this thread.
    ///
    /// # Errors
    ///
    /// See [`NoUring`].
    pub fn new(media: Arc<Media>, queue: u16, depth: u32) -> Result<Self, NoUring> {
        let mut ring = Ring::new(depth)?;
        let file = ring.add_file(file_of(&media, queue)?.as_fd()).map_err(|error| {
            HostError::from_io("register the image with a ring of the kernel", &error)
        })?;
        Ok(Self {
            ring,
            file,
            media,
            queue,
            depth: depth as usize,
            watched: Vec::new(),
            done: Vec::new(),
            completed: Vec::new(),
            offload: None,
            fixed: None,
            copied: 0,
            unkicked: 0,
            cached: Cached::default(),
            pace: Pace::default(),
            lone: Lone::default(),
            times: Times::new(),
        })
    }

    /// Another transfer waits to be given to the kernel, which is done here where the disk would
    /// be kept waiting. An error is met again with the next kick.
    fn transfers_wait(&mut self) {
        self.unkicked = self.unkicked.saturating_add(1);
        let direct = matches!(self.media.transfers(), Transfers::Direct { .. });
        if direct && self.unkicked >= TOGETHER {
            let _ = self.kick();
        }
    }

    /// Does at once what would cost more to hand over; gives back what is not of that kind.
    fn at_once(&mut self, operation: Operation, held: T) -> Option<T> {
        let Some(file) = self.media.file(self.queue) else { return Some(held) };
        let result = match (self.media.transfers(), operation) {
            (Transfers::Resident, Operation::Read { offset }) => {
                transfer(file, Way::Read, offset, &held)
            }
            (Transfers::Resident, Operation::Write { offset }) => {
                transfer(file, Way::Write, offset, &held)
            }
            (Transfers::Resident, Operation::Flush) => flush(file),
            (Transfers::Buffered, Operation::Write { offset })
                if self.pace.promises(offset, pieces::total(&held)) =>
            {
                transfer(file, Way::Write, offset, &held)
            }
            (Transfers::Buffered, Operation::Read { offset }) if self.cached.promises() => {
                let result = pieces::read_cached(file, offset, &held);
                self.cached.tried(result);
                if result.is_err() {
                    return Some(held);
                }
                result
            }
            // A discard frees pages one by one, which for a large range takes long.
            _ => return Some(held),
        };
        self.done.push(Finished { held, result });
        None
    }

    /// Writes past the page cache: at once where the guest waits for each of its writes, else after the
    /// file was readied for it.
    fn write(&mut self, offset: u64, held: T) -> Result<(), T> {
        let held = Held::for_transfer(held, Way::Write, self.media.transfers(), self.copied)?;
        let direct = matches!(self.media.transfers(), Transfers::Direct { .. });
        if let (true, Kind::File, Some(file)) =
            (direct, self.media.kind(), self.media.file(self.queue))
        {
            let alone = self.lone.promises(true, pieces::total(&held));
            if alone && self.ring.under_way() == 0 {
                let result = transfer(file, Way::Write, offset, &held);
                self.done.push(Finished { held: held.into_inner(), result });
                self.lone.over();
                return Ok(());
            }
            self.times.renew(file);
        }
        let file = self.file;
        self.ring.begin(Asked::Write { file, offset }, held).map_err(Held::into_inner)?;
        self.transfers_wait();
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64, secure: bool, held: T) -> Result<(), T> {
        let file = self.file;
        let asked = match (self.media.kind(), secure) {
            (Kind::Block, false) => Asked::Discard { file, offset, len },
            (Kind::Block, true) => {
                self.hand_off(Task::Discard { secure }, offset, len, Held::plain(held));
                return Ok(());
            }
            // See `DiscardLimits::secure`.
            (Kind::File, true) => {
                self.done.push(Finished { held, result: Err(libc::EOPNOTSUPP) });
                return Ok(());
            }
            (Kind::File, false) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                Asked::Allocate { file, mode, offset, len }
            }
        };
        self.ring.begin(asked, Held::plain(held)).map_err(Held::into_inner)
    }

    fn zero(&mut self, offset: u64, len: u64, unmap: bool, held: T) -> Result<(), T> {
        let Some(mode) = Manner::first(&self.media, unmap).mode() else { return Err(held) };
        let asked = Asked::Allocate { file: self.file, mode: mode.bits(), offset, len };
        self.ring.begin(asked, Held::plain(held)).map_err(Held::into_inner)
    }

    /// Whether `mode` of `fallocate` was to zero a range and not to discard one: files are discarded so only
    /// where that was seen to work.
    fn zeroes(&self, mode: i32) -> bool {
        self.media.kind() == Kind::Block || mode & libc::FALLOC_FL_ZERO_RANGE != 0
    }

    /// Has another thread do it.
    fn hand_off(&mut self, task: Task, offset: u64, len: u64, held: Held<T>) {
        let refused = match self.offload() {
            Ok(offload) => match offload.begin(task, offset, len, held) {
                Ok(()) => return,
                Err(held) => (held, libc::EIO),
            },
            Err(error) => (held, error.errno),
        };
        let (held, errno) = refused;
        self.done.push(Finished { held: held.into_inner(), result: Err(errno) });
    }

    fn offload(&mut self) -> Result<&mut Offload<Held<T>>, HostError> {
        let offload = match self.offload.take() {
            Some(both) => both,
            None => {
                let offload = Offload::new(file_of(&self.media, self.queue)?)?;
                let watch = self
                    .ring
                    .watch(offload.event())
                    .map_err(|error| HostError::from_io("watch for discards to be done", &error))?;
                (offload, watch)
            }
        };
        Ok(&mut self.offload.insert(offload).0)
    }

    /// Takes what has completed in the ring over into `done`.
    fn settle(&mut self) -> Result<(), HostError> {
        let mut completed = std::mem::take(&mut self.completed);
        self.ring.completed(&mut completed).map_err(|error| broken(&error))?;
        for Completed { held, operation, result } in completed.drain(..) {
            let total = pieces::total(&held);
            let finished = match operation {
                Asked::Read { .. } => {
                    let result = result.and_then(|moved| whole(moved, total));
                    Finished { held: held.after(Way::Read, result.unwrap_or(0)), result }
                }
                Asked::Write { .. } => {
                    let result = result.and_then(|moved| whole(moved, total));
                    Finished { held: held.into_inner(), result }
                }
                // The kernel has no such command, or the device none without waiting: the ioctl
                // does the same and has the last word.
                Asked::Discard { offset, len, .. }
                    if result.is_err_and(|errno| {
                        [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL].contains(&errno)
                    }) =>
                {
                    self.hand_off(Task::Discard { secure: false }, offset, len, held);
                    continue;
                }
                // What the kernel does not zero is written.
                Asked::Allocate { mode, offset, len, .. }
                    if self.zeroes(mode) && result.is_err_and(no_such_way) =>
                {
                    self.hand_off(Task::Zero, offset, len, held);
                    continue;
                }
                _ => Finished { held: held.into_inner(), result },
            };
            self.done.push(finished);
        }
        self.completed = completed;
        if let Some((offload, watch)) = &mut self.offload {
            if self.ring.take_ready(*watch) {
                offload.lower();
            }
            while let Some((held, result)) = offload.done() {
                self.done.push(Finished { held: held.into_inner(), result });
            }
        }
        Ok(())
    }

    /// Sees to it that the ring watches exactly these descriptors.
    fn watch(&mut self, watched: &[BorrowedFd<'_>]) -> Result<(), HostError> {
        let same =
            |((have, _), want): (&(RawFd, WatchId), &BorrowedFd<'_>)| *have == want.as_raw_fd();
        if self.watched.len() == watched.len() && self.watched.iter().zip(watched).all(same) {
            return Ok(());
        }
        for (_, watch) in self.watched.drain(..) {
            self.ring.unwatch(watch).map_err(|error| broken(&error))?;
        }
        for descriptor in watched {
            let watch = self.ring.watch(*descriptor).map_err(|error| broken(&error))?;
            self.watched.push((descriptor.as_raw_fd(), watch));
        }
        Ok(())
    }
}

fn broken(error: &std::io::Error) -> HostError {
    HostError::from_io("use a ring of the kernel", error)
}

impl<T: Buffers> Engine<T> for Uring<T> {
    fn submit(&mut self, operation: Operation, held: T) -> Result<(), T> {
        if self.under_way() >= self.depth {
            return Err(held);
        }
        let Some(held) = self.at_once(operation, held) else { return Ok(()) };
        let file = self.file;
        match operation {
            Operation::Read { offset } => {
                self.lone.promises(false, 0);
                let held =
                    Held::for_transfer(held, Way::Read, self.media.transfers(), self.copied)?;
                self.ring.begin(Asked::Read { file, offset }, held).map_err(Held::into_inner)?;
                self.transfers_wait();
                Ok(())
            }
            Operation::Write { offset } => self.write(offset, held),
            Operation::Flush => {
                self.ring.begin(Asked::Sync { file }, Held::plain(held)).map_err(Held::into_inner)
            }
            Operation::Discard { offset, len, secure } => self.discard(offset, len, secure, held),
            Operation::Zero { offset, len, unmap } => self.zero(offset, len, unmap, held),
        }
    }

    fn kick(&mut self) -> Result<(), HostError> {
        self.unkicked = 0;
        self.pace.judge();
        self.ring.kick().map_err(|error| broken(&error))
    }

    fn finished(&mut self, into: &mut Vec<Finished<T>>) -> Result<(), HostError> {
        self.settle()?;
        into.append(&mut self.done);
        Ok(())
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Woken, HostError> {
        self.watch(watched)?;
        if self.done.is_empty() {
            if self.ring.under_way() == 0 {
                self.lone.slept();
            }
            self.ring.wait(timeout).map_err(|error| broken(&error))?;
        } else {
            self.kick()?;
        }
        self.settle()?;
        let mut ready = false;
        for (_, watch) in &self.watched {
            ready |= self.ring.take_ready(*watch);
        }
        Ok(Woken::new(ready, !self.done.is_empty()))
    }

    fn under_way(&self) -> usize {
        let elsewhere = self.offload.as_ref().map_or(0, |(offload, _)| offload.under_way());
        self.ring.under_way().saturating_add(self.done.len()).saturating_add(elsewhere)
    }

    fn done_at_once(&self) -> usize {
        self.done.len()
    }

    fn register(&mut self, slot: u16, base: *mut u8, len: usize) -> bool {
        if self.media.transfers() == Transfers::Resident || slot >= FIXED {
            return false;
        }
        let ring = &mut self.ring;
        let have = *self.fixed.get_or_insert_with(|| ring.make_buffers(FIXED).is_ok());
        if !have {
            return false;
        }
        let Err(error) = ring.set_buffer(slot, base, len) else { return true };
        if error.raw_os_error() != Some(libc::ENOMEM) {
            self.copied = COPIED;
        }
        false
    }
}
