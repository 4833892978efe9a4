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

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use hypervisor::HostError;

use super::interface::{self, Name};
use super::kernel::Kernel;
use super::{Port, Turned};
use crate::buffer::{Buffer, Pool};
use crate::vnet::Form;

/// A packet socket.
pub struct PacketPort {
    kernel: Kernel,
}

impl PacketPort {
    /// One of the interface of that name, for the thread that asks.
    ///
    /// # Errors
    ///
    /// There is no such interface, or the kernel refuses.
    pub fn open(name: &Name) -> Result<Self, HostError> {
        let socket = interface::packet_socket(name)?;
        Ok(Self { kernel: Kernel::new(socket.as_fd(), Form::Short)? })
    }
}

impl Port for PacketPort {
    fn room(&self) -> usize {
        self.kernel.room()
    }

    fn send(&mut self, packet: Buffer) {
        self.kernel.send(packet);
    }

    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError> {
        self.kernel.turn(pool, most, into)
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<(), HostError> {
        self.kernel.wait(watched, receive, timeout)
    }

    /// The link is the interface's own.
    fn carrier(&mut self, _up: bool) -> Result<(), HostError> {
        Ok(())
    }
}
