//! Real Xen, from a Linux process in any of its domains.
//!
//! ```text
//!   Domain ── using ────> /dev/xen/gntdev     map, unmap, copy
//!     ├────── granting ─> /dev/xen/gntalloc   pages born granted
//!     ├────── channel ──> /dev/xen/evtchn     one open file a channel
//!     └────── store ────> xenstored's socket, or /dev/xen/xenbus
//! ```
//!
//! Written against the kernel's ioctl interface: no C library, and no privcmd. A process needs
//! access to these nodes and no other privilege.
//!
//! Trust: the kernel and Xen are trusted; whoever granted, or is granted, a page is not.
//! Sources: the kernel's `include/uapi/xen/`, and Xen's `grant_table.h` and `event_channel.h`
//! (RELEASE-4.17).

pub mod about;
mod channel;
mod domain;
mod granting;
mod ioctl;
pub mod leak;
pub mod node;
mod store;
mod using;
mod window;

pub use about::{About, about};
pub use channel::EventChannel;
pub use domain::Domain;
pub use granting::{Offered, Pages};
pub use node::Node;
pub use using::{Lease, Mapping};
pub use window::Window;
