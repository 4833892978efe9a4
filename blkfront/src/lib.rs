//! Xen block frontend.
//!
//! A disk that another domain serves, used from this one. The modules in the order in which a
//! request meets them:
//!
//! ```text
//!  caller                                                                  backend
//!    | request, buffer | arena                                                |
//!    v                                                                        |
//!  submit --> jobs --> pool (bounce) --> shadow --> ring --> notify --------->|
//!  complete <-- jobs <-- pool (copy out) <-- shadow (check) <-- ring <--------|
//!
//!  device: negotiate, link, reconnect                      (the store, grants, event channels)
//! ```
//!
//! [`disk`] puts a [`device`] and its [`queue`]s together for one thread that polls, such as a
//! kernel's. `host` does the same for a Linux process: queues for several threads, sleeping on
//! file descriptors.
//!
//! # Trust
//!
//! The backend is not trusted unless a caller lends it memory ([`arena`]). It reaches only pages
//! that were made for it and zeroed; what it says on the ring is held against a private copy of
//! every request; what it says in the store is checked for range, each time anew
//! ([`negotiate`]); pages that it will not let go of are never used again
//! ([`Quarantine`](hypervisor::frontend::Quarantine)). It can
//! still serve wrong data or none at all: whether data is good is for the layers above.
//!
//! The library is `no_std`. It allocates when a device is connected, and not for requests.
//!
//! Source: `io/blkif.h`, `io/ring.h`, `grant_table.h`, RELEASE-4.17.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod arena;
pub mod buffer;
mod complete;
pub mod device;
pub mod disk;
#[cfg(feature = "std")]
pub mod host;
mod jobs;
pub mod link;
pub mod negotiate;
pub mod queue;
mod reconnect;
pub mod request;
mod shadow;
mod submit;
pub mod vdev;

pub use buffer::{Buffer, Private};
pub use device::{Config, Device, Ending, Platform, Step};
pub use disk::Disk;
pub use negotiate::DiskInfo;
pub use queue::Queue;
pub use request::{Completion, IoError, Operation, Reason, Rejected, Request};
