//! What carries requests to the medium.
//!
//! An engine belongs to one queue's thread. It takes an [`Operation`] together with what must
//! stay alive while it is under way, and gives that back with the result. It never looks at the
//! ring and knows nothing of guests.
//!
//! [`uring`] is the usual one; [`blocking`] stands in where io_uring is refused; [`null`] and
//! [`memory`] are for measuring what is in front of them. [`Any`] is whichever was chosen for a
//! [`Medium`].
//!
//! Before: `submit`. After: `complete`. Units: bytes.

mod any;
pub mod blocking;
mod held;
pub mod memory;
pub mod null;
mod offload;
mod pieces;
mod promptly;
mod sleep;
pub mod uring;
mod zero;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use ::uring::Buffers;
use hypervisor::HostError;

pub use any::{Any, Choice, Medium};

/// What is to be done at `offset` bytes into the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the buffers from `offset` on.
    Read {
        /// Where, in bytes.
        offset: u64,
    },
    /// Store what the buffers hold from `offset` on.
    Write {
        /// Where, in bytes.
        offset: u64,
    },
    /// Put everything whose write was completed before this on stable storage.
    Flush,
    /// Forget `len` bytes from `offset` on.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// Whether what was there must be beyond recovery.
        secure: bool,
    },
    /// Have `len` bytes from `offset` on read as zeroes.
    Zero {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// Whether they need not keep their place on the medium.
        unmap: bool,
    },
}

/// An operation that is over, for better or worse.
#[derive(Debug)]
pub struct Finished<T> {
    /// What was handed in with it.
    pub held: T,
    /// Bytes moved (all of them: an engine resumes short transfers itself), or a positive `errno`.
    pub result: Result<u64, i32>,
}

/// Why [`Engine::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Woken {
    /// A watched descriptor is readable, or was since the last wait.
    pub watched: bool,
    /// Operations may have finished.
    pub finished: bool,
}

impl Woken {
    /// What the wait saw.
    #[must_use]
    pub const fn new(watched: bool, finished: bool) -> Self {
        Self { watched, finished }
    }
}

/// One queue's way to the medium.
pub trait Engine<T: Buffers> {
    /// Takes an operation on. It may begin at once or with the next [`kick`](Self::kick).
    ///
    /// # Errors
    ///
    /// There is no room for it now; what was held comes back, and so will room, with completions.
    fn submit(&mut self, operation: Operation, held: T) -> Result<(), T>;

    /// Sees to it that all that was taken on has begun, without waiting for any of it.
    ///
    /// # Errors
    ///
    /// The engine is beyond use.
    fn kick(&mut self) -> Result<(), HostError>;

    /// Appends what has finished, without waiting and where possible without asking the kernel.
    ///
    /// # Errors
    ///
    /// The engine is beyond use.
    fn finished(&mut self, into: &mut Vec<Finished<T>>) -> Result<(), HostError>;

    /// Begins what was taken on and sleeps until an operation finishes, one of `watched` becomes
    /// readable, or `timeout` has passed. The same few descriptors are given every time, in the
    /// same order, so an engine may register them once. One that is left unread is reported again.
    ///
    /// # Errors
    ///
    /// The engine is beyond use.
    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Woken, HostError>;

    /// Operations taken on and not yet given back.
    fn under_way(&self) -> usize;

    /// Results that lie ready because their operations were done while they were taken on, at a cost that is
    /// worth telling the guest of the first before the last is begun.
    fn done_at_once(&self) -> usize {
        0
    }

    /// Makes `slot` stand for `len` bytes from `base` on, or with a length of zero for nothing, so
    /// that pieces may name it ([`Piece::fixed`](::uring::Piece::fixed)). What is unmapped is to be
    /// taken out first. Answers whether the engine gains by it; where it does not, `fixed` is to
    /// stay `None`.
    fn register(&mut self, slot: u16, base: *mut u8, len: usize) -> bool;
}
