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
    script: is_ours,
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

/// Whether the hotplug script called `name` is ours, for a disk of type `kind`. For disks of type `vbd3` that name
/// none, libxl from 4.19 on runs `block-tap`, in whose place ours may be installed (`libxl_disk.c`, RELEASE-4.20).
fn is_ours(kind: &str, name: &str) -> bool {
    name == "block-domkit" || (kind == "vbd3" && name == "block-tap")
}

fn label(number: u32) -> Result<String, ConfigError> {
    Ok(number.to_string().parse::<Vdev>()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn blktaps_script_is_ours_for_its_type_of_disk_only() {
        for (kind, name, ours) in [
            ("vbd", "block-domkit", true),
            ("vbd3", "block-domkit", true),
            ("vbd3", "block-tap", true),
            ("vbd", "block-tap", false),
            ("vbd3", "block", false),
        ] {
            assert_eq!(is_ours(kind, name), ours, "{kind}, {name}");
        }
    }
}
