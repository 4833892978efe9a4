//! A disk, as the device that `hypervisor::backend` takes through its life.
//!
//! [`KIND`] and the [`Service`](hypervisor::backend::Service) of [`Disks`] say what is a disk's own about that: the keys of
//! `connect::xenbus`, and queues that serve the rings. What is to be served says the command line, for a disk
//! of ours ([`order`]), or a toolstack ([`wish`]). [`machine`] is the same disk for a virtual machine over
//! vhost-user.
//!
//! Before: `hypervisor::backend`. After: `connect`, and the queues.

pub mod desk;
pub mod keep;
pub mod machine;
pub mod order;
pub mod queues;
pub mod wish;

use hypervisor::ConfigError;
use hypervisor::backend::Kind;

use crate::vdev::Vdev;

pub use desk::DeviceDesk;
pub use keep::Keep;
pub use machine::MachineDisk;
pub use queues::{Disks, Manner, Policy};
pub use wish::Wish;

/// What every disk is.
pub const KIND: &Kind = &Kind {
    frontend: "vbd",
    noun: "disk",
    option: "--vdev",
    label,
    detach: "xl block-detach",
    script: "block-domkit",
    live: &[],
    wishes: &[],
    reconfigures: false,
    // As Linux's backend (v6.1) does.
    connects_early: true,
    resumes: false,
};

/// What others ask of a disk's thread.
pub type Message = hypervisor::backend::Message<Resize, u64>;

/// A new size for the disk; answered by the size that it then has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// In bytes; without one, that which the image has now.
    pub size: Option<u64>,
}

fn label(number: u32) -> Result<String, ConfigError> {
    Ok(number.to_string().parse::<Vdev>()?.to_string())
}
