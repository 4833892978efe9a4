//! A TAP: an interface of the host's whose packets are ours to take and to give.
//!
//! It has one queue for each of the device's; the kernel keeps a flow to the queue that last sent of
//! it. Packets cross it in one piece of up to 64 KiB, with headers that say what is left to do. What the
//! guest cannot do itself is best done by the kernel, which knows more of a packet; so the TAP is told
//! what the guest takes.
//!
//! Needs `CAP_NET_ADMIN`, or a TAP that was made for us. One that we made goes when its last queue is
//! closed, unless it is kept. Source: `Documentation/networking/tuntap.rst`, `linux/if_tun.h`; the name and the address as
//! Xen's scripts have them (`tools/hotplug/Linux/vif-common.sh`, RELEASE-4.17).

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use hypervisor::HostError;

use super::interface::{self, Name};
use super::kernel::KernelPort;
use crate::connect::Features;
use crate::filter::Mac;

/// The address of the host's end of a guest's interface: no guest's, and above all of theirs, so that a
/// bridge never takes it for its own.
pub const MAC: Mac = [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];

/// A TAP and its queues.
#[derive(Debug)]
pub struct Tap {
    name: Name,
    queues: Vec<Arc<OwnedFd>>,
}

impl Tap {
    /// The TAP of that name with so many queues, at least one; made where it is not there.
    ///
    /// # Errors
    ///
    /// The kernel refuses: we may not, or the name belongs to another kind of interface.
    pub fn open(name: Name, queues: u16) -> Result<Self, HostError> {
        let queues = (0..queues.max(1)).map(|_| interface::attach_tap(&name).map(Arc::new));
        let queues = queues.collect::<Result<_, _>>()?;
        Ok(Self { name, queues })
    }

    /// Its name: the one that it has now, which need not be the one that it was made with.
    #[must_use]
    pub fn name(&self) -> Name {
        let now = self.queues.first().and_then(|queue| interface::name_of(queue.as_fd()).ok());
        now.unwrap_or_else(|| self.name.clone())
    }

    /// Gives it the host's [`MAC`] and `mtu`.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn dress(&self, mtu: Option<u16>) -> Result<(), HostError> {
        interface::set_mac(&self.name, MAC)?;
        mtu.map_or(Ok(()), |mtu| interface::set_mtu(&self.name, mtu))
    }

    /// Brings it up, so dressed.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn set_up(&self, mtu: Option<u16>) -> Result<(), HostError> {
        self.dress(mtu)?;
        interface::bring_up(&self.name)
    }

    /// Puts it on a bridge.
    ///
    /// # Errors
    ///
    /// There is no such bridge, or the kernel refuses.
    pub fn join(&self, bridge: &Name) -> Result<(), HostError> {
        interface::join_bridge(&self.name, bridge)
    }

    /// Has the kernel do what a guest with these features does not. It always cuts large UDP (USO): there is
    /// no such type of segments between Xen's frontends and backends (`XEN_NETIF_GSO_TYPE_*` in io/netif.h),
    /// and cut here, one packet would fill what may wait for the guest with dozens.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn serve(&self, features: &Features) -> Result<(), HostError> {
        let Features { takes, sums, .. } = features;
        let mut flags = 0;
        // Where the guest takes one family's only, the other's are completed on their way to it.
        if sums.v4 || sums.v6 {
            flags |= libc::TUN_F_CSUM;
            let both = [
                (takes.gso_tcpv4 && takes.sg, libc::TUN_F_TSO4),
                (takes.gso_tcpv6 && takes.sg, libc::TUN_F_TSO6),
            ];
            flags |= both.iter().filter(|(taken, _)| *taken).fold(0, |all, (_, bit)| all | bit);
        }
        // They are the interface's, whichever queue they are said to.
        let first = self.queues.first().map(|queue| queue.as_fd());
        first.map_or(Ok(()), |queue| interface::set_offloads(queue, &self.name, flags))
    }

    /// Says whether its link is up.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn set_carrier(&self, up: bool) -> Result<(), HostError> {
        let first = self.queues.first().map(|queue| queue.as_fd());
        first.map_or(Ok(()), |queue| interface::set_carrier(queue, &self.name, up))
    }

    /// Says whether it stays when its last queue is closed.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn keep(&self, kept: bool) -> Result<(), HostError> {
        let first = self.queues.first().map(|queue| queue.as_fd());
        first.map_or(Ok(()), |queue| interface::set_persistent(queue, &self.name, kept))
    }

    /// What makes the port of queue `number`, on the thread that serves it.
    #[must_use]
    pub fn queue(
        &self,
        number: usize,
    ) -> Option<impl FnOnce() -> Result<KernelPort, HostError> + Send + use<>> {
        let (file, name) = (Arc::clone(self.queues.get(number)?), self.name.clone());
        Some(move || KernelPort::tap(file, name))
    }
}
