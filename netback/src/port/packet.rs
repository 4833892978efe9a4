//! An interface that is there already, through a packet socket: what it receives is the guest's, and
//! what the guest sends goes out of it.
//!
//! For an interface that a guest is to have as its own, or to share with the host, where no bridge is
//! wanted. The host's network still sees what the interface receives, and nobody is told that the link
//! is down. The interface is promiscuous meanwhile, so that it receives what is for the guest's address.
//! What comes with a VLAN tag is kept from the guest, for the socket would have it without; a guest that
//! is to be in a VLAN is given that VLAN's interface.
//! One socket has all the packets, so there is one queue. Needs `CAP_NET_RAW`, and `CAP_NET_ADMIN` for
//! room for more than a few large packets.
//!
//! Source: `packet(7)`; `linux/if_packet.h`.

use std::os::fd::AsFd as _;

use hypervisor::HostError;

use super::interface::{self, Name};
use super::kernel::KernelPort;
use crate::vnet::Form;

/// A packet socket of the interface of that name, for the thread that asks. The link stays the
/// interface's own.
///
/// # Errors
///
/// There is no such interface, or the kernel refuses.
pub fn open(name: &Name) -> Result<KernelPort, HostError> {
    KernelPort::new(interface::packet_socket(name)?.as_fd(), Form::Short)
}
