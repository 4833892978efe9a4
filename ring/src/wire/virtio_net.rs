//! The network protocol of virtio, beside the header in front of packets ([`crate::packet::vnet`]).
//!
//! Queues come in pairs: `2 * n` is that on which pair `n` receives, `2 * n + 1` that on which it sends, and behind
//! the last pair is the control queue, where there is one. Source: virtio 1.2, 5.1. Integers are little-endian.

use super::{bytes_at, put_at};

/// What a device says that it can do, and what of that a driver uses (`VIRTIO_NET_F_*`).
pub mod feature {
    /// The driver leaves checksums to the device.
    pub const CSUM: u64 = 1 << 0;
    /// It takes packets whose checksum is left to it.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device tells the largest payload.
    pub const MTU: u64 = 1 << 3;
    /// The device tells the driver's address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 that is to be cut.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// And over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// And such of which only the first segment has CWR.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The device cuts TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// And over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// And such of which only the first segment has CWR.
    pub const HOST_ECN: u64 = 1 << 13;
    /// The driver takes a packet in several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device tells whether its link is up.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// It has [`control::RX`](super::control::RX).
    pub const CTRL_RX: u64 = 1 << 18;
    /// It has [`control::VLAN`](super::control::VLAN).
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// It has more of [`control::RX`](super::control::RX).
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The driver tells the network where it is when the device asks for it.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// There may be several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The control queue can set the driver's address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The driver takes UDP over IPv4 that is to be cut.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// And over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device cuts UDP.
    pub const HOST_USO: u64 = 1 << 56;
}

/// What is asked on the control queue: a class, a command, and bytes of its own. It is answered with one byte.
pub mod control {
    /// `VIRTIO_NET_OK`.
    pub const OK: u8 = 0;
    /// `VIRTIO_NET_ERR`.
    pub const ERR: u8 = 1;

    /// Which packets to receive; the commands are numbered from [`PROMISC`] to [`NOBCAST`], each with a byte that
    /// says whether.
    pub const RX: u8 = 0;
    /// All of them.
    pub const PROMISC: u8 = 0;
    /// All multicast.
    pub const ALLMULTI: u8 = 1;
    /// All unicast.
    pub const ALLUNI: u8 = 2;
    /// No multicast.
    pub const NOMULTI: u8 = 3;
    /// No unicast.
    pub const NOUNI: u8 = 4;
    /// No broadcast.
    pub const NOBCAST: u8 = 5;

    /// Addresses.
    pub const MAC: u8 = 1;
    /// Two tables: unicast and multicast addresses to receive packets for.
    pub const MAC_TABLE_SET: u8 = 0;
    /// The driver's own address.
    pub const MAC_ADDR_SET: u8 = 1;

    /// VLANs to receive packets of.
    pub const VLAN: u8 = 2;
    /// One more.
    pub const VLAN_ADD: u8 = 0;
    /// One less.
    pub const VLAN_DEL: u8 = 1;

    /// The driver has told the network where it is.
    pub const ANNOUNCE: u8 = 3;
    /// Just that.
    pub const ANNOUNCE_ACK: u8 = 0;

    /// How many pairs are used.
    pub const MQ: u8 = 4;
    /// That many, in 16 bits.
    pub const VQ_PAIRS_SET: u8 = 0;
}

/// In [`Configuration::status`]: the link is up (`VIRTIO_NET_S_LINK_UP`).
pub const LINK_UP: u16 = 1;
/// Neither speed nor duplex mode is known.
const UNKNOWN: u32 = u32::MAX;

/// What a driver is told of the device (`struct virtio_net_config`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The driver's address.
    pub mac: [u8; 6],
    /// [`LINK_UP`], or nothing.
    pub status: u16,
    /// Pairs of queues.
    pub max_virtqueue_pairs: u16,
    /// The largest payload of a packet, in bytes.
    pub mtu: u16,
}

impl Configuration {
    /// Bytes of it, as far as it is given here.
    pub const SIZE: usize = 17;

    /// Puts it together.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_at(&mut bytes, 0, self.mac);
        put_at(&mut bytes, 6, self.status.to_le_bytes());
        put_at(&mut bytes, 8, self.max_virtqueue_pairs.to_le_bytes());
        put_at(&mut bytes, 10, self.mtu.to_le_bytes());
        put_at(&mut bytes, 12, UNKNOWN.to_le_bytes());
        put_at(&mut bytes, 16, [u8::MAX]);
        bytes
    }

    /// Takes it apart.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self {
            mac: bytes_at(bytes, 0),
            status: u16::from_le_bytes(bytes_at(bytes, 6)),
            max_virtqueue_pairs: u16::from_le_bytes(bytes_at(bytes, 8)),
            mtu: u16::from_le_bytes(bytes_at(bytes, 10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_lies_as_virtio_has_it() {
        let all = Configuration {
            mac: [2, 3, 4, 5, 6, 7],
            status: LINK_UP,
            max_virtqueue_pairs: 0x0102,
            mtu: 0x2328,
        };
        let bytes = all.encode();
        let wanted = [2, 3, 4, 5, 6, 7, 1, 0, 2, 1, 0x28, 0x23, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(bytes, wanted);
        assert_eq!(Configuration::decode(&bytes), all);
    }
}
