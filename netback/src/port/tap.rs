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
use crate::vnet::Header;

/// The address of the host's end of a guest's interface: no guest's, and above all of theirs, so that a
/// bridge never takes it for its own.
pub const MAC: Mac = [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];

/// What of a packet for the guest is left to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Completing checksums.
    pub sums: bool,
    /// Cutting TCP over IPv4.
    pub tso4: bool,
    /// And over IPv6.
    pub tso6: bool,
    /// And such of which only the first segment has CWR.
    pub ecn: bool,
    /// Cutting UDP.
    pub uso: bool,
}

/// `TUN_F_USO4` and `TUN_F_USO6` (linux/if_tun.h): there are both or neither.
const TUN_F_USO: u32 = 0x20 | 0x40;

impl Offloads {
    /// As the kernel is told (`TUN_F_*`).
    fn flags(&self) -> u32 {
        let all = [
            (self.sums, libc::TUN_F_CSUM),
            (self.tso4, libc::TUN_F_TSO4),
            (self.tso6, libc::TUN_F_TSO6),
            (self.ecn, libc::TUN_F_TSO_ECN),
            (self.uso, TUN_F_USO),
        ];
        // Without checksums there is nothing else.
        let left = all.iter().filter(|(taken, _)| *taken && self.sums);
        left.fold(0, |flags, (_, bit)| flags | bit)
    }
}

impl From<&Features> for Offloads {
    /// Never large UDP (USO): there is no such type of segments between Xen's frontends and backends
    /// (`XEN_NETIF_GSO_TYPE_*` in io/netif.h), and cut here, one packet would fill what may wait for the guest with
    /// dozens; so the kernel does it.
    fn from(features: &Features) -> Self {
        let Features { takes, sums, .. } = features;
        Self {
            // Where the guest takes one family's only, the other's are completed on their way to it.
            sums: sums.v4 || sums.v6,
            tso4: takes.gso_tcpv4 && takes.sg,
            tso6: takes.gso_tcpv6 && takes.sg,
            ecn: false,
            uso: false,
        }
    }
}

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
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        let mut tap = Self { name, queues };
        // The kernel may have numbered it.
        tap.name = tap.name();
        Ok(tap)
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

    /// Leaves so much to the guest, and has the kernel do the rest.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn serve(&self, offloads: &Offloads) -> Result<(), HostError> {
        // They are the interface's, whichever queue they are said to.
        let first = self.queues.first().map(|queue| queue.as_fd());
        let flags = offloads.flags();
        first.map_or(Ok(()), |queue| interface::set_offloads(queue, &self.name, flags))
    }

    /// Whether this kernel cuts large UDP, and can leave that to others (Linux 6.2). Nothing is left to anybody
    /// after it.
    #[must_use]
    pub fn cuts_udp(&self) -> bool {
        let all = Offloads { sums: true, uso: true, ..Offloads::default() };
        let can = self.serve(&all).is_ok();
        can && self.serve(&Offloads::default()).is_ok()
    }

    /// Sends a packet of the guest's, of which nothing is to be said.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn send(&self, packet: &[u8]) -> Result<(), HostError> {
        let Some(first) = self.queues.first() else { return Ok(()) };
        let bytes = [&Header::default().encode(), packet].concat();
        interface::send(first.as_fd(), &self.name, &bytes)
    }

    /// Sets the largest payload of its packets.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), HostError> {
        interface::set_mtu(&self.name(), mtu)
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
