//! Plain system calls on the queue's own thread.
//!
//! For machines where io_uring is refused. One operation at a time: each is done when `submit`
//! returns, and the queue waits meanwhile. What a flush promises is the same as everywhere
//! ([`Media`]).

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ::uring::Buffers;
use hypervisor::HostError;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::fdatasync;

use crate::engine::held::Held;
use crate::engine::pieces::{self, Way};
use crate::engine::zero::{self, Manner};
use crate::engine::{Engine, Finished, Operation, Woken, sleep};
use crate::image::{Kind, Media, block};

/// One queue's way to an image by plain calls.
#[derive(Debug)]
pub struct Blocking<T> {
    media: Arc<Media>,
    queue: u16,
    done: Vec<Finished<T>>,
    depth: usize,
}

impl<T: Buffers> Blocking<T> {
    /// Queue `queue` of `media`, for up to `depth` operations at a time.
    ///
    /// # Errors
    ///
    /// The image was not opened for that many queues.
    pub fn new(media: Arc<Media>, queue: u16, depth: u32) -> Result<Self, HostError> {
        file_of(&media, queue)?;
        Ok(Self { media, queue, done: Vec::with_capacity(depth as usize), depth: depth as usize })
    }
}

/// The queue's open file description.
pub(super) fn file_of(media: &Media, queue: u16) -> Result<&File, HostError> {
    let missing = || {
        let doing = format!("find queue {queue}'s descriptor of the image");
        HostError::new(doing, libc::EBADF)
    };
    media.file(queue).ok_or_else(missing)
}

/// Reads or writes all of `held`'s bytes; an image that ends before its size says is an error.
pub(super) fn transfer(
    file: &File,
    way: Way,
    offset: u64,
    held: &impl Buffers,
) -> Result<u64, i32> {
    let moved = pieces::transfer(file, way, offset, held)?;
    whole(moved, pieces::total(held))
}

/// The bytes moved, where they are all that there were to move.
pub(super) const fn whole(moved: u64, total: u64) -> Result<u64, i32> {
    if moved < total { Err(libc::EIO) } else { Ok(moved) }
}

/// Makes a call until it is not given up any more.
pub(super) fn retried(mut call: impl FnMut() -> Result<(), Errno>) -> Result<u64, i32> {
    let mut tries = 0_u32;
    loop {
        match call() {
            Ok(()) => return Ok(0),
            Err(errno) if pieces::passing(errno as i32) && tries < pieces::TRIES => {
                tries = tries.saturating_add(1);
            }
            Err(errno) => return Err(errno as i32),
        }
    }
}

/// Puts what was written on stable storage.
pub(super) fn flush(file: &File) -> Result<u64, i32> {
    retried(|| fdatasync(file))
}

fn discard(media: &Media, file: &File, offset: u64, len: u64, secure: bool) -> Result<u64, i32> {
    match media.kind() {
        Kind::Block => block::discard(file, offset, len, secure).map(|()| 0),
        // See `DiscardLimits::secure`.
        Kind::File if secure => Err(libc::EOPNOTSUPP),
        Kind::File => {
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let range = (i64::try_from(offset), i64::try_from(len));
            let (Ok(offset), Ok(len)) = range else { return Err(libc::EINVAL) };
            retried(|| fallocate(file, mode, offset, len))
        }
    }
}

impl<T: Buffers> Engine<T> for Blocking<T> {
    fn submit(&mut self, operation: Operation, held: T) -> Result<(), T> {
        if self.done.len() >= self.depth {
            return Err(held);
        }
        let Some(file) = self.media.file(self.queue) else { return Err(held) };
        let media = &self.media;
        let finished = match operation {
            Operation::Read { offset } => {
                let held = Held::for_transfer(held, Way::Read, media.transfers(), 0)?;
                let result = transfer(file, Way::Read, offset, &held);
                Finished { held: held.after(Way::Read, result.unwrap_or(0)), result }
            }
            Operation::Write { offset } => {
                let held = Held::for_transfer(held, Way::Write, media.transfers(), 0)?;
                let result = transfer(file, Way::Write, offset, &held);
                Finished { held: held.into_inner(), result }
            }
            Operation::Flush => Finished { held, result: flush(file) },
            Operation::Discard { offset, len, secure } => {
                Finished { held, result: discard(media, file, offset, len, secure) }
            }
            Operation::Zero { offset, len, unmap } => {
                let result = zero::in_turn(file, offset, len, Manner::first(media, unmap));
                Finished { held, result }
            }
        };
        self.done.push(finished);
        Ok(())
    }

    fn kick(&mut self) -> Result<(), HostError> {
        Ok(())
    }

    fn finished(&mut self, into: &mut Vec<Finished<T>>) -> Result<(), HostError> {
        into.append(&mut self.done);
        Ok(())
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Woken, HostError> {
        if !self.done.is_empty() {
            return Ok(Woken::new(false, true));
        }
        Ok(Woken::new(sleep::until_readable(watched, timeout)?, false))
    }

    fn under_way(&self) -> usize {
        self.done.len()
    }

    fn done_at_once(&self) -> usize {
        self.done.len()
    }

    fn register(&mut self, _slot: u16, _base: *mut u8, _len: usize) -> bool {
        false
    }
}
