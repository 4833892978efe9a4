//! Xen network frontend.
//!
//! A network interface that another domain serves, used from this one. The modules in the order in
//! which a packet meets them:
//!
//! ```text
//!  caller                                                                     backend
//!    | packet, offload                                                           |
//!    v                                                                           |
//!  transmit --> pool --> shadow --> ring (split) --> notify -------------------->|
//!  receive <-- ring (collect) <-- posted (check) <-------------------------------|
//!     |--- refill --> pool --> posted --> ring --> notify ---------------------->|
//!
//!  device: negotiate, link, control                       (the store, grants, event channels)
//! ```
//!
//! [`interface`] puts a [`device`] and its [`queue`]s together for one thread that polls, such as a
//! kernel's. `host` does the same for a Linux process: queues for several threads, sleeping on
//! file descriptors, and packets to and from a TAP.
//!
//! # Trust
//!
//! The backend is not trusted, whatever the toolstack says of it. It reaches only pages that were
//! made for it and zeroed; what it says on a ring is held against a private copy of every request;
//! what it says in the store is checked for range, each time anew ([`negotiate`]); pages that it
//! will not let go of are never used again ([`Quarantine`](hypervisor::frontend::Quarantine)). A
//! packet that it gives lies in pages that it can still write to until the packet is copied out: what
//! is to be looked at is copied first. It can still lose, change and invent packets, as any network can.
//!
//! When a backend goes, packets that it was given and had not answered are lost, which networks may
//! do; when one comes, pages are posted anew. Nobody who uses a queue need know.
//!
//! The library is `no_std`. It allocates when a device is connected, and not for packets.
//!
//! Source: `io/netif.h`, `io/ring.h`, `grant_table.h`, RELEASE-4.17.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod control;
pub mod device;
#[cfg(feature = "std")]
pub mod host;
pub mod interface;
pub mod link;
pub mod negotiate;
mod posted;
pub mod queue;
mod receive;
mod refill;
mod shadow;
mod staging;
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
mod transmit;

pub use control::{HashSetup, HashState};
pub use device::{Config, Connection, Device, Ending, Phase, Platform, Step};
pub use interface::Interface;
pub use negotiate::{NetInfo, Offer, Offloads};
pub use queue::{Counters, Queue};
pub use receive::Received;
pub use ring::wire::netif::chain::{Checksum, Multicast, Offload};
pub use ring::wire::netif::extra::{Gso, GsoProtocol};
pub use transmit::{Place, Refused};
