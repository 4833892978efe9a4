//! Extras: slots between the first and the second link of a chain, which say what a packet is; or,
//! for the multicast list, that there is no packet at all.
//!
//! Before it: a slot's bytes, copied out, where a chain says that an extra follows. After it: whoever
//! follows the chain. An extra fits a slot of either ring, and none has an id.
//!
//! ```text
//!  0    1     2           4    5    6         8
//!  +----+-----+-----------+----+----+---------+
//!  |type|flags| size      |type| pad| features|   GSO
//!  |type|flags| address                       |   multicast add, delete
//!  |type|flags|type|alg   | value             |   hash
//!  |type|flags| headroom  | zero              |   XDP
//!  +----+-----+-----------+-------------------+
//! ```
//!
//! Source: `netif_extra_info`, `XEN_NETIF_EXTRA_*`, `XEN_NETIF_GSO_*` in io/netif.h (RELEASE-4.17);
//! for XDP, Linux's copy of it (v5.9).

use super::control::Algorithm;
use crate::wire::{bytes_at, put_at};

/// `XEN_NETIF_EXTRA_FLAG_MORE`: another extra follows.
pub const MORE: u8 = 1 << 0;

/// `XEN_NETIF_EXTRA_TYPE_*`.
pub mod kind {
    /// `XEN_NETIF_EXTRA_TYPE_GSO`.
    pub const GSO: u8 = 1;
    /// `XEN_NETIF_EXTRA_TYPE_MCAST_ADD`.
    pub const MCAST_ADD: u8 = 2;
    /// `XEN_NETIF_EXTRA_TYPE_MCAST_DEL`.
    pub const MCAST_DEL: u8 = 3;
    /// `XEN_NETIF_EXTRA_TYPE_HASH`.
    pub const HASH: u8 = 4;
    /// `XEN_NETIF_EXTRA_TYPE_XDP`.
    pub const XDP: u8 = 5;
}

/// How many kinds of extra there are.
pub const KINDS: usize = 5;

/// What a slot between two links of a chain says (`netif_extra_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extra {
    /// Whether another follows.
    pub more: bool,
    /// What it says.
    pub kind: Kind,
}

/// What an extra says, by type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// How to cut the packet into segments.
    Gso(Gso),
    /// Let packets to this multicast address through. No packet belongs to it.
    McastAdd([u8; 6]),
    /// Do not, any more. No packet belongs to it.
    McastDel([u8; 6]),
    /// The hash of the packet's flow.
    Hash(Hash),
    /// How many bytes stand free in front of the packet.
    Xdp {
        /// Bytes from the start of the page.
        headroom: u16,
    },
    /// A type that is none of these.
    Unknown(u8),
}

/// How to cut a packet that is larger than its network takes (`u.gso`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// The most payload of one segment: TCP's maximum segment size.
    pub size: u16,
    /// What is to be cut, as it was on the wire; see [`Self::protocol`].
    pub protocol: u8,
    /// `XEN_NETIF_GSO_FEAT_*`, of which there is none.
    pub features: u16,
}

/// What can be cut into segments (`XEN_NETIF_GSO_TYPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum GsoProtocol {
    /// `XEN_NETIF_GSO_TYPE_TCPV4`.
    TcpV4 = 1,
    /// `XEN_NETIF_GSO_TYPE_TCPV6`.
    TcpV6 = 2,
}

impl Gso {
    /// TCP over IPv4 or IPv6, cut into segments of `size` bytes of payload.
    #[inline]
    #[must_use]
    pub const fn new(protocol: GsoProtocol, size: u16) -> Self {
        Self { size, protocol: protocol as u8, features: 0 }
    }

    /// What is to be cut, where it is known.
    #[inline]
    #[must_use]
    pub const fn protocol(self) -> Option<GsoProtocol> {
        match self.protocol {
            1 => Some(GsoProtocol::TcpV4),
            2 => Some(GsoProtocol::TcpV6),
            _ => None,
        }
    }
}

/// The hash of a packet's flow (`u.hash`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash {
    /// What was hashed: the number of a bit of [`super::control::HashTypes`].
    pub of: u8,
    /// How.
    pub algorithm: Algorithm,
    /// The hash.
    pub value: u32,
}

impl Extra {
    /// Bytes of one.
    pub const SIZE: usize = 8;

    /// The type as it is on the wire.
    #[inline]
    #[must_use]
    pub const fn number(&self) -> u8 {
        match self.kind {
            Kind::Gso(_) => kind::GSO,
            Kind::McastAdd(_) => kind::MCAST_ADD,
            Kind::McastDel(_) => kind::MCAST_DEL,
            Kind::Hash(_) => kind::HASH,
            Kind::Xdp { .. } => kind::XDP,
            Kind::Unknown(number) => number,
        }
    }

    /// Reads one.
    #[inline]
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let [number, flags, a, b, c, d, e, f] = *bytes;
        let kind = match number {
            kind::GSO => Kind::Gso(Gso {
                size: u16::from_le_bytes([a, b]),
                protocol: c,
                features: u16::from_le_bytes([e, f]),
            }),
            kind::MCAST_ADD => Kind::McastAdd(bytes_at(bytes, 2)),
            kind::MCAST_DEL => Kind::McastDel(bytes_at(bytes, 2)),
            kind::HASH => Kind::Hash(Hash {
                of: a,
                algorithm: Algorithm(u32::from(b)),
                value: u32::from_le_bytes([c, d, e, f]),
            }),
            kind::XDP => Kind::Xdp { headroom: u16::from_le_bytes([a, b]) },
            other => Kind::Unknown(other),
        };
        Self { more: flags & MORE != 0, kind }
    }

    /// Writes one, its padding zero.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_at(&mut bytes, 0, [self.number(), if self.more { MORE } else { 0 }]);
        match self.kind {
            Kind::Gso(gso) => {
                put_at(&mut bytes, 2, gso.size.to_le_bytes());
                put_at(&mut bytes, 4, [gso.protocol]);
                put_at(&mut bytes, 6, gso.features.to_le_bytes());
            }
            Kind::McastAdd(address) | Kind::McastDel(address) => put_at(&mut bytes, 2, address),
            Kind::Hash(hash) => {
                let [algorithm, ..] = hash.algorithm.0.to_le_bytes();
                put_at(&mut bytes, 2, [hash.of, algorithm]);
                put_at(&mut bytes, 4, hash.value.to_le_bytes());
            }
            Kind::Xdp { headroom } => put_at(&mut bytes, 2, headroom.to_le_bytes()),
            Kind::Unknown(_) => {}
        }
        bytes
    }
}
