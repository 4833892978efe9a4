//! An engine that does what a test says: holds operations back, fails them, or breaks.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blkback::engine::memory::{Disk, Memory};
use blkback::engine::{Engine, Finished, Operation, Woken};
use hypervisor::HostError;
use uring::Buffers;

/// What the test says, and what it is told.
#[derive(Default)]
pub(crate) struct State {
    /// Operations wait until this is false. Wake the queue after changing it.
    pub(crate) hold: bool,
    /// That queue's operations wait.
    pub(crate) hold_queue: Option<u16>,
    /// Only flushes wait.
    pub(crate) hold_flushes: bool,
    /// Flushes on that queue fail so.
    pub(crate) fail_flush: Option<(u16, i32)>,
    /// Transfers fail so.
    pub(crate) fail_transfer: Option<i32>,
    /// Reads and writes move one sector less than asked, and say so.
    pub(crate) short: bool,
    /// The next call to kick fails.
    pub(crate) break_kick: Option<i32>,
    /// The next call to finished fails.
    pub(crate) break_finished: Option<i32>,
    /// The queue's thread panics at the next kick.
    pub(crate) panic: bool,
    /// The most operations at a time; 0 for no limit.
    pub(crate) room: usize,
    /// What began, in order: queue and operation.
    pub(crate) began: Vec<(u16, Operation)>,
    /// What ended, in order.
    pub(crate) ended: Vec<(u16, Operation)>,
    /// Registered memory is wanted.
    pub(crate) registers: bool,
    /// Where each registered buffer begins and how long it is.
    pub(crate) registered: HashMap<u16, (usize, usize)>,
    /// Pieces that named one.
    pub(crate) named: usize,
    /// Engines that were dropped.
    pub(crate) dropped: usize,
}

pub(crate) type Script = Arc<Mutex<State>>;

/// One queue's scripted engine over a disk in memory.
pub(crate) struct Scripted<T: Buffers> {
    inner: Memory<T>,
    waiting: VecDeque<(Operation, T)>,
    over: Vec<Finished<T>>,
    queue: u16,
    script: Script,
}

impl<T: Buffers> Scripted<T> {
    pub(crate) fn new(disk: Arc<Disk>, queue: u16, script: Script) -> Self {
        Self {
            inner: Memory::new(disk, 4096),
            waiting: VecDeque::new(),
            over: Vec::new(),
            queue,
            script,
        }
    }

    /// Lets go of what may go.
    fn advance(&mut self) {
        let mut state = self.script.lock().unwrap();
        let mut still = VecDeque::new();
        while let Some((operation, held)) = self.waiting.pop_front() {
            let flush = operation == Operation::Flush;
            let waits = state.hold || state.hold_queue == Some(self.queue);
            if waits || (flush && state.hold_flushes) {
                still.push_back((operation, held));
                continue;
            }
            state.ended.push((self.queue, operation));
            let failure = match state.fail_flush {
                Some((queue, errno)) if flush && queue == self.queue => Some(errno),
                _ if !flush => state.fail_transfer,
                _ => None,
            };
            if let Some(errno) = failure {
                self.over.push(Finished { held, result: Err(errno) });
            } else if self.inner.submit(operation, held).is_err() {
                panic!("the disk in memory has no room");
            }
        }
        self.waiting = still;
        let from = self.over.len();
        self.inner.finished(&mut self.over).unwrap();
        if state.short {
            for done in self.over.iter_mut().skip(from) {
                done.result = done.result.map(|moved| moved.saturating_sub(512));
            }
        }
    }
}

impl<T: Buffers> Drop for Scripted<T> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.script.lock() {
            state.dropped += 1;
        }
    }
}

impl<T: Buffers> Engine<T> for Scripted<T> {
    fn submit(&mut self, operation: Operation, held: T) -> Result<(), T> {
        let mut state = self.script.lock().unwrap();
        if state.room > 0 && self.waiting.len() >= state.room {
            return Err(held);
        }
        for piece in held.pieces() {
            let Some(number) = piece.fixed else { continue };
            let (base, len) = state.registered[&number];
            let at = piece.base.addr();
            assert!(at >= base && at + piece.len as usize <= base + len, "outside its buffer");
            state.named += 1;
        }
        state.began.push((self.queue, operation));
        self.waiting.push_back((operation, held));
        Ok(())
    }

    fn kick(&mut self) -> Result<(), HostError> {
        let (errno, panics) = {
            let mut state = self.script.lock().unwrap();
            (state.break_kick.take(), std::mem::take(&mut state.panic))
        };
        assert!(!panics, "as the test said");
        errno.map_or(Ok(()), |errno| Err(HostError::new("kick the script", errno)))
    }

    fn finished(&mut self, into: &mut Vec<Finished<T>>) -> Result<(), HostError> {
        let errno = self.script.lock().unwrap().break_finished.take();
        if let Some(errno) = errno {
            return Err(HostError::new("finish the script", errno));
        }
        self.advance();
        into.append(&mut self.over);
        Ok(())
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Woken, HostError> {
        self.inner.wait(watched, timeout)
    }

    fn under_way(&self) -> usize {
        self.waiting.len()
    }

    fn register(&mut self, slot: u16, base: *mut u8, len: usize) -> bool {
        let mut state = self.script.lock().unwrap();
        match len {
            0 => state.registered.remove(&slot),
            _ => state.registered.insert(slot, (base.addr(), len)),
        };
        state.registers
    }
}
