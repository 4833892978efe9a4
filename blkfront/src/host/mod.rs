//! A disk in a Linux process that is a domain.
//!
//! One thread follows the store and connects, reconnects and closes the device
//! ([`hypervisor::frontend::host`]). Each
//! [`HostQueue`] belongs to whichever thread took it, which puts requests in and waits for completions:
//! looking for them for as long as that pays, then sleeping on the event channel's file descriptor.
//! The two meet at a lock for each queue that is free except while the device's state changes.
//!
//! That a backend vanished is seen by queues as requests that take longer.

pub mod claim;
mod disk;
pub mod find;
mod queue;

use crate::buffer::Either;

pub use disk::{HostDisk, Status};
pub use hypervisor::frontend::host::{Host, OpenError};
pub use queue::HostQueue;

/// A request's memory: bytes of the process, or part of an arena.
pub type HostBuffer<H> = Either<Vec<u8>, <H as hypervisor::memory::Granting>::Memory>;
