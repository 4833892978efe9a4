//! A disk in a Linux process that is a domain.
//!
//! One thread follows the store and connects, reconnects and closes the device. Each
//! [`HostQueue`] belongs to whichever thread took it, which puts requests in and waits for completions:
//! looking for them for as long as that pays, then sleeping on the event channel's file descriptor.
//! The two meet at a lock for each queue that is free except while the device's state changes.
//!
//! That a backend vanished is seen by queues as requests that take longer.

mod bell;
pub mod claim;
mod control;
mod disk;
pub mod find;
mod queue;

use std::os::fd::{AsFd, BorrowedFd};

use crate::buffer::Either;
use crate::device::Platform;

pub use disk::{HostDisk, OpenError, Status};
pub use queue::HostQueue;

/// What a process needs of its domain.
pub trait Host: Platform<Channel: AsFd> + Clone + Send + Sync + 'static {
    /// Polls readable when the store may have a change to tell.
    fn store_fd(&self) -> BorrowedFd<'_>;
}

impl<D: hypervisor::host::Domain> Host for D {
    fn store_fd(&self) -> BorrowedFd<'_> {
        self.changes()
    }
}

/// A request's memory: bytes of the process, or part of an arena.
pub type HostBuffer<H> = Either<Vec<u8>, <H as hypervisor::memory::Granting>::Memory>;
