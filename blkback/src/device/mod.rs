//! One disk for one guest: from the store's first word to its last.
//!
//! [`serve`] is the daemon's loop: it waits for the guest, has the device made ([`toolstack`]), takes
//! it through its life ([`backend`], by the rules of [`lifecycle`]), and begins again with the next
//! guest of that name. What serves a connection's rings is behind [`Service`]. One thread does all
//! of this, so that nothing is freed under somebody's feet however fast a guest connects and
//! disconnects (advisories 350, 374); the queues' threads end before what they use does.
//!
//! ```text
//!   serve ── guest, toolstack      who is served, and the device's directories
//!     │
//!     ├──── backend, lifecycle     the device's states
//!     │        │
//!     │        └── Service         rings, queues, engines, image
//!     │
//!     └──── mailbox <── desk <── control socket, signals
//! ```
//!
//! Before: the store. After: `connect`. Trust: the frontend's directory is attacker-written; what
//! it does wrong ends its connection, is said in `error` beside the state, and is counted.

pub mod adopt;
pub mod backend;
pub mod desk;
pub mod guest;
pub mod hotplug;
pub mod lifecycle;
pub mod mailbox;
pub mod queues;
pub mod serve;
pub mod standby;
pub mod toolstack;

use hypervisor::Error;
use hypervisor::event::Events;
use hypervisor::memory::Using;

use crate::connect::Connection;
use crate::connect::xenbus::Disk;

pub use adopt::{Adopted, Spot};
pub use backend::Backend;
pub use desk::DeviceDesk;
pub use guest::{Guest, Wanted};
pub use mailbox::{Mailbox, Waker};
pub use queues::{Disks, Manner, Policy};
pub use serve::{Board, Ended, Message, Plan, Serving};

/// All that a backend needs of its domain besides the store.
pub trait Platform: Using + Events {}

impl<T: Using + Events> Platform for T {}

/// What serves a disk's connections, one at a time.
pub trait Service<H: Platform> {
    /// A connection that is being served.
    type Running: Running;

    /// What the disk is like now.
    fn disk(&self) -> Disk;

    /// Takes `size` bytes as the disk's new size, or without one that which the image has now, and
    /// answers it. Requests are measured by it from then on.
    ///
    /// # Errors
    ///
    /// The image cannot have that size.
    fn resize(&self, size: Option<u64>) -> Result<u64, Error>;

    /// Begins to serve `connection`. `waker` is to be woken when [`Running::failed`] has something
    /// to say.
    ///
    /// # Errors
    ///
    /// The frontend's fault, or the host cannot.
    fn start(
        &self,
        domain: &H,
        connection: Connection<H::Mapping, H::Channel>,
        waker: Waker,
    ) -> Result<Self::Running, Error>;
}

/// A connection that is being served.
pub trait Running {
    /// What ended the service of it before its time, if anything did.
    fn failed(&mut self) -> Option<Error>;

    /// Looks at limits and sizes again.
    fn wake(&self);

    /// Takes on nothing more, finishes what is under way, answers it, and lets the rings go.
    fn finish(self);
}
