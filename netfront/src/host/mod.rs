//! An interface in a Linux process that is a domain.
//!
//! One thread follows the store and connects, reconnects and closes the device
//! ([`hypervisor::frontend::host`]). Each [`HostQueue`] belongs to whichever thread took it, which sends
//! and receives: looking for packets for as long as that pays, then sleeping on the event channels'
//! file descriptors. The two meet at a lock for each queue that is free except while the device's state
//! changes.
//!
//! A [`Pump`] moves packets between a queue and a [`Tap`], so that the host's own programs use the
//! interface as if they were in that domain.

pub mod claim;
mod cutting;
pub mod find;
mod interface;
mod pump;
mod queue;
mod tap;
mod vectors;
mod vnet;

pub use hypervisor::frontend::host::{Host, OpenError};
pub use interface::{HostInterface, Status};
pub use pump::{Pump, Pumped};
pub use queue::HostQueue;
pub use tap::{Namespace, Tap};
