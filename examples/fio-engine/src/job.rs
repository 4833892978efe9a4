//! One job's queue, and the memory of its requests.

use core::ffi::c_int;
use std::time::Duration;

use blkfront::arena::Arena;
use blkfront::buffer::Either;
use blkfront::host::{HostBuffer, HostQueue};
use blkfront::{Completion, IoError, Private, Reason, Request};
use hypervisor::embedded::Domain;
use hypervisor::memory::Granting;

use crate::disk::{self, Failure, setting};
use crate::layout::{Direction, Q_BUSY, Q_COMPLETED, Q_QUEUED, Unit};

type Buffer = HostBuffer<Domain>;

/// Where fio's buffers are.
enum Memory {
    None,
    /// Granted to the backend.
    Lent(Arena<<Domain as Granting>::Memory>),
    /// Our own: requests copy from and to it. Words, for their alignment.
    Own(#[expect(dead_code, reason = "fio uses it, by its address")] Vec<u64>),
}

pub(crate) struct Job {
    queue: HostQueue<Domain>,
    memory: Memory,
    done: Vec<Completion<Buffer>>,
    events: Vec<Unit>,
}

impl Job {
    pub(crate) fn new(depth: u32) -> Result<Self, Failure> {
        let mut queue = disk::queue()?;
        let adaptive = u64::MAX;
        let poll = setting("DOMKIT_FIO_POLL", adaptive)?;
        if poll != adaptive {
            queue.set_polling(poll.saturating_mul(1000));
        }
        let room = depth as usize;
        Ok(Self {
            queue,
            memory: Memory::None,
            done: Vec::with_capacity(room),
            events: Vec::with_capacity(room),
        })
    }

    /// Memory for all of the job's buffers.
    pub(crate) fn allocate(&mut self, len: usize) -> Result<*mut u8, Failure> {
        if setting("DOMKIT_FIO_BOUNCE", 0)? == 0 {
            match disk::arena(len) {
                Ok(arena) => {
                    let base = arena.base();
                    self.memory = Memory::Lent(arena);
                    return Ok(base);
                }
                Err(error) => {
                    eprintln!("domkit: copying, for buffers cannot be lent: {error}");
                }
            }
        }
        let mut own = vec![0_u64; len.div_ceil(8)];
        let base = own.as_mut_ptr().cast();
        self.memory = Memory::Own(own);
        Ok(base)
    }

    pub(crate) fn free(&mut self) {
        if let Memory::Lent(arena) = std::mem::replace(&mut self.memory, Memory::None)
            && let Some(domain) = disk::domain()
        {
            // What the backend still has mapped goes when this process does.
            let _ = arena.close(&domain);
        }
    }

    pub(crate) fn queue(&mut self, unit: Unit) -> c_int {
        let tag = unit.address();
        let nothing = || Either::Private(Private::nothing());
        let request = match unit.direction() {
            Direction::Read => {
                let buffer = self
                    .lent(unit)
                    .unwrap_or_else(|| Either::Private(Private::new(vec![0; unit.len()])));
                Request::read(unit.offset(), buffer, tag)
            }
            Direction::Write => {
                let buffer =
                    self.lent(unit).unwrap_or_else(|| Either::Private(Private::new(unit.bytes())));
                Request::write(unit.offset(), buffer, tag)
            }
            Direction::Trim => Request::discard(unit.offset(), unit.len() as u64, nothing(), tag),
            Direction::Sync => Request::flush(nothing(), tag),
            Direction::Other(_) => {
                unit.finish(libc::EINVAL.unsigned_abs());
                return Q_COMPLETED;
            }
        };
        match self.queue.submit(request) {
            Ok(()) => Q_QUEUED,
            Err(rejected) if rejected.reason == Reason::Full => Q_BUSY,
            Err(rejected) => {
                match self.queue.ending() {
                    Some(ending) => eprintln!("domkit: {ending}"),
                    None => eprintln!(
                        "domkit: {} bytes at {}: {}",
                        unit.len(),
                        unit.offset(),
                        rejected.reason
                    ),
                }
                unit.finish(match rejected.reason {
                    Reason::ReadOnly => libc::EROFS.unsigned_abs(),
                    Reason::Unsupported => libc::EOPNOTSUPP.unsigned_abs(),
                    Reason::Detached => libc::ENODEV.unsigned_abs(),
                    _ => libc::EINVAL.unsigned_abs(),
                });
                Q_COMPLETED
            }
        }
    }

    /// The unit's memory as part of the arena, if it is.
    fn lent(&self, unit: Unit) -> Option<Buffer> {
        let Memory::Lent(arena) = &self.memory else { return None };
        let offset = unit.buffer().addr().checked_sub(arena.base().addr())?;
        arena.part(offset, unit.len()).map(Either::Lent)
    }

    pub(crate) fn commit(&mut self) {
        self.queue.service(&mut self.done);
    }

    /// Waits for at least `least` units to end; they then are the events.
    pub(crate) fn wait(
        &mut self,
        least: usize,
        patience: Option<Duration>,
    ) -> Result<usize, Failure> {
        let more = least.saturating_sub(self.done.len());
        self.queue.wait(&mut self.done, more, patience)?;
        self.events.clear();
        for Completion { request, result } in self.done.drain(..) {
            let unit = crate::queued(request.tag);
            let read = unit.direction() == Direction::Read && result.is_ok();
            if let (true, Either::Private(bytes)) = (read, &request.buffer) {
                unit.fill(bytes);
            }
            unit.finish(match result {
                Ok(()) => 0,
                Err(IoError::Unsupported) => libc::EOPNOTSUPP.unsigned_abs(),
                Err(IoError::Detached) => libc::ENODEV.unsigned_abs(),
                Err(_) => libc::EIO.unsigned_abs(),
            });
            self.events.push(unit);
        }
        Ok(self.events.len())
    }

    pub(crate) fn event(&self, number: usize) -> Option<Unit> {
        self.events.get(number).copied()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.free();
    }
}
