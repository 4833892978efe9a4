//! A device in a Linux process that is a domain.
//!
//! One thread follows the store and connects, reconnects and closes the device. What it gives the
//! device's users, and takes from them, goes through their [`Lanes`]: a lock for each queue, as a
//! rule, that is free except while the device's state changes.

mod bell;
pub mod claim;
mod control;
pub mod find;
mod stop;
mod user;

use std::os::fd::{AsFd, BorrowedFd};

use super::{Ending, Kind, Platform};

pub use bell::Bell;
pub use stop::Stop;
pub use user::{CLOSING, OpenError, Shared, Status, User};

/// What a process needs of its domain.
pub trait Host: Platform<Channel: AsFd> + Clone + Send + Sync + 'static {
    /// Polls readable when the store may have a change to tell.
    fn store_fd(&self) -> BorrowedFd<'_>;
}

impl<D: crate::host::Domain> Host for D {
    fn store_fd(&self) -> BorrowedFd<'_> {
        self.changes()
    }
}

/// The queues of a device's users, told by the thread that follows the store. Whoever sleeps at
/// one is to be woken by each of these.
pub trait Lanes<H: Host, K: Kind<H>>: Send + Sync + 'static {
    /// Go on over `links`, which are those of what the device is.
    fn attach(&self, links: K::Links, info: K::Info);

    /// Stop using links, and give them back.
    fn detach(&self) -> K::Links;

    /// The device is this now.
    fn update(&self, info: K::Info);

    /// The device is over: stop using links for good, and give them back.
    fn end(&self, ending: &Ending) -> K::Links;
}
