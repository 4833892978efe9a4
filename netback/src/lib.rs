//! Network backend, for Xen's frontends and for virtio drivers.
//!
//! The stages of the data path, in the order in which a packet meets them:
//!
//! ```text
//! the guest sends:     tx: receive -> assemble -> copy_in -> validate -> respond -> port
//! the guest receives:  port -> rx: steer -> take -> post -> fit -> copy_out -> respond
//! ```
//!
//! One thread serves one queue ([`queue`]), both directions of it. A packet on its way is in a
//! [`buffer`], with what is said of it in front ([`vnet`]); what is left to others of it, and what
//! is done here instead, is in [`offload`] and [`segment`].

// How a frontend and this backend come together.
pub mod connect;
pub mod control;
pub mod kept;
pub mod memo;

// The device around it: its life, and what others may ask of it.
pub mod ctl;
pub mod device;
pub mod watch;

// The path of a packet.
pub mod tx;
pub mod rx;
pub mod port;
pub mod virtqueue;
pub mod notify;

// What it passes.
pub mod filter;
pub mod credit;
pub mod offload;
pub mod segment;

// What a packet is while it is here.
pub mod buffer;
pub use ring::packet::vnet;

// What holds the stages together.
pub mod queue;
pub mod stats;
