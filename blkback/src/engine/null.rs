//! A medium that keeps nothing: every operation succeeds at once.
//!
//! It measures what lies in front of the engines. Reads leave the buffers as they are, so whoever
//! lends buffers that another guest has used must clear them first.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use ::uring::Buffers;
use hypervisor::HostError;

use crate::engine::{Engine, Finished, Operation, Woken, pieces, sleep};

/// One queue's way to nothing.
#[derive(Debug)]
pub struct Null<T> {
    done: Vec<Finished<T>>,
    depth: usize,
}

impl<T: Buffers> Null<T> {
    /// A queue of up to `depth` operations at a time.
    #[must_use]
    pub fn new(depth: u32) -> Self {
        Self { done: Vec::with_capacity(depth as usize), depth: depth as usize }
    }
}

impl<T: Buffers> Engine<T> for Null<T> {
    fn submit(&mut self, operation: Operation, held: T) -> Result<(), T> {
        if self.done.len() >= self.depth {
            return Err(held);
        }
        let moved = match operation {
            Operation::Read { .. } | Operation::Write { .. } => pieces::total(&held),
            Operation::Flush | Operation::Discard { .. } | Operation::Zero { .. } => 0,
        };
        self.done.push(Finished { held, result: Ok(moved) });
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

    fn register(&mut self, _slot: u16, _base: *mut u8, _len: usize) -> bool {
        false
    }
}
