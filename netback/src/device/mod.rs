//! A network interface, as the device that `hypervisor::backend` takes through its life.
//!
//! [`KIND`] and the [`Service`](hypervisor::backend::Service) of [`Vif`] say what is an interface's own
//! about that: the keys of `connect::xenbus`, and queues that serve the rings. Where its packets go
//! is an [`Uplink`]. What is to be served says the command line, for an interface of ours ([`order`]), or
//! a toolstack ([`wish`]).
//!
//! Before: `hypervisor::backend`. After: `connect`, and the queues.

mod announce;
mod control_queue;
pub mod desk;
pub mod mac;
pub mod machine;
pub mod order;
mod pairs;
pub mod queues;
pub mod uplink;
pub mod vif;
pub mod wish;

use hypervisor::ConfigError;
use hypervisor::backend::Kind;
use ring::wire::netif::keys;

pub use desk::DeviceDesk;
pub use machine::MachineVif;
pub use queues::Queues;
pub use uplink::Uplink;
pub use vif::{Policy, Vif};
pub use wish::Wish;

/// What every interface is.
pub const KIND: &Kind = &Kind {
    frontend: "vif",
    noun: "network interface",
    option: "--devid",
    label,
    detach: "xl network-detach",
    // Those that toolstacks bring find the interface by its name: none has to be told anything.
    script: |_, _| false,
    live: &[keys::RATE.name],
    wishes: &[keys::REQUEST_MULTICAST_CONTROL.name],
    reconfigures: true,
    // As Linux's backend (v6.1) does not.
    connects_early: false,
    resumes: true,
};

/// What others ask of an interface's thread.
pub type Message = hypervisor::backend::Message<Link, bool>;

/// Whether the guest's link is to be up; answered by whether it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// It is; without one, as before.
    pub up: Option<bool>,
}

#[expect(clippy::unnecessary_wraps, reason = "there are kinds of device whose numbers mean more")]
fn label(number: u32) -> Result<String, ConfigError> {
    Ok(number.to_string())
}
