//! What one domain may ask of the hypervisor and of its peers.
//!
//! The hypervisor itself deals with CPU and memory and knows nothing of disks or networks. Two
//! domains that split a device between them need five things of it, and each is a small trait
//! here: memory that one offers and the other uses ([`memory`]), events ([`event`]), the store
//! in which they meet ([`store`]), and control over domains ([`domain`]). Drivers name these
//! traits and never the platform behind them.
//!
//! The core is `no_std`; features only add.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "backend")]
pub mod backend;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod domain;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod error;
pub mod event;
#[cfg(all(feature = "embedded", feature = "xen"))]
pub mod find;
pub mod frontend;
#[cfg(feature = "std")]
pub mod host;
pub mod id;
pub mod memory;
#[cfg(feature = "std")]
pub mod size;
pub mod store;
#[cfg(all(feature = "embedded", any(test, feature = "test-util")))]
pub mod testing;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
#[cfg(feature = "xen")]
pub mod xen;
pub mod xenbus;
#[cfg(feature = "std")]
pub mod xenstore;

pub use error::{ConfigError, Error, HostError, Peer, PeerFault};
pub use id::{DomId, EventPort, GrantRef, PAGE_SIZE};
