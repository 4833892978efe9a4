//! What a control ring's slots hold, and the tables that its requests point at.
//!
//! Before it: a slot's bytes, copied out, or those of a granted page. After it: whoever keeps the
//! hash's settings and the mapped grants. The peer wrote every field and none is checked here.
//!
//! ```text
//!  0    2      4        8        12       16      0    2      4        8        12
//!  +----+------+--------+--------+--------+       +----+------+--------+--------+
//!  | id | type |data[0] |data[1] |data[2] |       | id | type | status | data   |
//!  +----+------+--------+--------+--------+       +----+------+--------+--------+
//! ```
//!
//! Source: `xen_netif_ctrl_request`, `xen_netif_ctrl_response`, `xen_netif_gref`,
//! `XEN_NETIF_CTRL_*` in io/netif.h (RELEASE-4.17).

use core::fmt;

use hypervisor::GrantRef;

use crate::wire::{bytes_at, put_at};

/// Bytes of one entry of a hash mapping: the number of a queue.
pub const MAPPING_ENTRY: usize = 4;

/// `XEN_NETIF_CTRL_TYPE_*`.
pub mod kind {
    /// `XEN_NETIF_CTRL_TYPE_INVALID`.
    pub const INVALID: u16 = 0;
    /// `XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS`.
    pub const GET_HASH_FLAGS: u16 = 1;
    /// `XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS`.
    pub const SET_HASH_FLAGS: u16 = 2;
    /// `XEN_NETIF_CTRL_TYPE_SET_HASH_KEY`.
    pub const SET_HASH_KEY: u16 = 3;
    /// `XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE`.
    pub const GET_HASH_MAPPING_SIZE: u16 = 4;
    /// `XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE`.
    pub const SET_HASH_MAPPING_SIZE: u16 = 5;
    /// `XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING`.
    pub const SET_HASH_MAPPING: u16 = 6;
    /// `XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM`.
    pub const SET_HASH_ALGORITHM: u16 = 7;
    /// `XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE`.
    pub const GET_GREF_MAPPING_SIZE: u16 = 8;
    /// `XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING`.
    pub const ADD_GREF_MAPPING: u16 = 9;
    /// `XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING`.
    pub const DEL_GREF_MAPPING: u16 = 10;
}

/// How a flow is hashed (`XEN_NETIF_CTRL_HASH_ALGORITHM_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Algorithm(pub u32);

impl Algorithm {
    /// `XEN_NETIF_CTRL_HASH_ALGORITHM_NONE`: it is not; the backend chooses queues as it likes.
    pub const NONE: Self = Self(0);
    /// `XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ`.
    pub const TOEPLITZ: Self = Self(1);
}

/// What of a packet is hashed (`XEN_NETIF_CTRL_HASH_TYPE_*`). Where several fit a packet, the one
/// that takes in most.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct HashTypes(pub u32);

impl HashTypes {
    /// Nothing: hashing is off.
    pub const NONE: Self = Self(0);
    /// IPv4 addresses.
    pub const IPV4: Self = Self(1 << 0);
    /// IPv4 addresses and TCP ports.
    pub const IPV4_TCP: Self = Self(1 << 1);
    /// IPv6 addresses.
    pub const IPV6: Self = Self(1 << 2);
    /// IPv6 addresses and TCP ports.
    pub const IPV6_TCP: Self = Self(1 << 3);
    /// All that there are.
    pub const ALL: Self = Self(0b1111);

    /// Whether all of `other` are among these.
    #[inline]
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A request on the control ring (`xen_netif_ctrl_request`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The frontend's private value, to be echoed in the response.
    pub id: u16,
    /// What is asked.
    pub operation: Operation,
}

/// What is asked, by type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Which types of hash are there?
    GetHashFlags,
    /// Hash these.
    SetHashFlags(HashTypes),
    /// Hash with this key. What of it is not given is zero.
    SetHashKey {
        /// The page that begins with the key.
        gref: GrantRef,
        /// Bytes of the key.
        size: u32,
    },
    /// How many entries may a mapping have?
    GetHashMappingSize,
    /// Make an empty mapping; without entries, queues are chosen modulo their number.
    SetHashMappingSize {
        /// Entries.
        entries: u32,
    },
    /// Fill in a part of the mapping.
    SetHashMapping {
        /// The page that begins with that part.
        gref: GrantRef,
        /// Entries in that part.
        entries: u32,
        /// Where in the mapping it begins, in entries.
        offset: u32,
    },
    /// Hash in this way.
    SetHashAlgorithm(Algorithm),
    /// How many grants can be kept mapped?
    GetGrefMappingSize {
        /// The queue.
        queue: u32,
    },
    /// Map the grants in this list, all or none, and keep them.
    AddGrefMapping(GrefList),
    /// Give up the grants in this list, and say of each whether that was done.
    DelGrefMapping(GrefList),
    /// A type that is none of these.
    Unknown(u16),
}

/// Where a list of [`Gref`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrefList {
    /// The queue whose grants they are.
    pub queue: u32,
    /// The page that begins with the list, which the backend may write.
    pub gref: GrantRef,
    /// Entries of the list.
    pub entries: u32,
}

impl Request {
    /// Bytes of one.
    pub const SIZE: usize = 16;

    /// Reads one.
    #[must_use]
    pub fn decode(slot: &[u8; Self::SIZE]) -> Self {
        let id = u16::from_le_bytes(bytes_at(slot, 0));
        let number = u16::from_le_bytes(bytes_at(slot, 2));
        let [first, second, third] =
            [4, 8, 12].map(|offset| u32::from_le_bytes(bytes_at(slot, offset)));
        let list = GrefList { queue: first, gref: GrantRef(second), entries: third };
        let operation = match number {
            kind::GET_HASH_FLAGS => Operation::GetHashFlags,
            kind::SET_HASH_FLAGS => Operation::SetHashFlags(HashTypes(first)),
            kind::SET_HASH_KEY => Operation::SetHashKey { gref: GrantRef(first), size: second },
            kind::GET_HASH_MAPPING_SIZE => Operation::GetHashMappingSize,
            kind::SET_HASH_MAPPING_SIZE => Operation::SetHashMappingSize { entries: first },
            kind::SET_HASH_MAPPING => {
                Operation::SetHashMapping { gref: GrantRef(first), entries: second, offset: third }
            }
            kind::SET_HASH_ALGORITHM => Operation::SetHashAlgorithm(Algorithm(first)),
            kind::GET_GREF_MAPPING_SIZE => Operation::GetGrefMappingSize { queue: first },
            kind::ADD_GREF_MAPPING => Operation::AddGrefMapping(list),
            kind::DEL_GREF_MAPPING => Operation::DelGrefMapping(list),
            other => Operation::Unknown(other),
        };
        Self { id, operation }
    }

    /// Writes one, with zero where its type has no data.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let of_list = |list: GrefList| [list.queue, list.gref.0, list.entries];
        let data = match self.operation {
            Operation::GetHashFlags | Operation::GetHashMappingSize | Operation::Unknown(_) => {
                [0; 3]
            }
            Operation::SetHashFlags(types) => [types.0, 0, 0],
            Operation::SetHashKey { gref, size } => [gref.0, size, 0],
            Operation::SetHashMappingSize { entries } => [entries, 0, 0],
            Operation::SetHashMapping { gref, entries, offset } => [gref.0, entries, offset],
            Operation::SetHashAlgorithm(algorithm) => [algorithm.0, 0, 0],
            Operation::GetGrefMappingSize { queue } => [queue, 0, 0],
            Operation::AddGrefMapping(list) | Operation::DelGrefMapping(list) => of_list(list),
        };
        let mut slot = [0; Self::SIZE];
        put_at(&mut slot, 0, self.id.to_le_bytes());
        put_at(&mut slot, 2, self.operation.number().to_le_bytes());
        for (offset, word) in [4, 8, 12].into_iter().zip(data) {
            put_at(&mut slot, offset, word.to_le_bytes());
        }
        slot
    }
}

impl Operation {
    /// The type as it is on the wire.
    #[must_use]
    pub const fn number(&self) -> u16 {
        match self {
            Self::GetHashFlags => kind::GET_HASH_FLAGS,
            Self::SetHashFlags(_) => kind::SET_HASH_FLAGS,
            Self::SetHashKey { .. } => kind::SET_HASH_KEY,
            Self::GetHashMappingSize => kind::GET_HASH_MAPPING_SIZE,
            Self::SetHashMappingSize { .. } => kind::SET_HASH_MAPPING_SIZE,
            Self::SetHashMapping { .. } => kind::SET_HASH_MAPPING,
            Self::SetHashAlgorithm(_) => kind::SET_HASH_ALGORITHM,
            Self::GetGrefMappingSize { .. } => kind::GET_GREF_MAPPING_SIZE,
            Self::AddGrefMapping(_) => kind::ADD_GREF_MAPPING,
            Self::DelGrefMapping(_) => kind::DEL_GREF_MAPPING,
            Self::Unknown(number) => *number,
        }
    }
}

/// What came of a control request (`XEN_NETIF_CTRL_STATUS_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Status(pub u32);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// The backend has no such operation, or not now.
    pub const NOT_SUPPORTED: Self = Self(1);
    /// A value makes no sense.
    pub const INVALID_PARAMETER: Self = Self(2);
    /// A key or table is larger than the backend keeps.
    pub const BUFFER_OVERFLOW: Self = Self(3);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SUCCESS => f.write_str("success"),
            Self::NOT_SUPPORTED => f.write_str("not supported"),
            Self::INVALID_PARAMETER => f.write_str("invalid parameter"),
            Self::BUFFER_OVERFLOW => f.write_str("buffer overflow"),
            Self(other) => write!(f, "status {other}"),
        }
    }
}

/// The answer to a control request (`xen_netif_ctrl_response`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's.
    pub id: u16,
    /// The request's type.
    pub kind: u16,
    /// What came of it.
    pub status: Status,
    /// What was asked for, where it was a question and succeeded.
    pub data: u32,
}

impl Response {
    /// Bytes of one.
    pub const SIZE: usize = 12;

    /// The answer `status` with `data` to `request`.
    #[must_use]
    pub const fn to(request: &Request, status: Status, data: u32) -> Self {
        Self { id: request.id, kind: request.operation.number(), status, data }
    }

    /// Reads one.
    #[must_use]
    pub fn decode(answer: &[u8; Self::SIZE]) -> Self {
        Self {
            id: u16::from_le_bytes(bytes_at(answer, 0)),
            kind: u16::from_le_bytes(bytes_at(answer, 2)),
            status: Status(u32::from_le_bytes(bytes_at(answer, 4))),
            data: u32::from_le_bytes(bytes_at(answer, 8)),
        }
    }

    /// Writes one.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut answer = [0; Self::SIZE];
        put_at(&mut answer, 0, self.id.to_le_bytes());
        put_at(&mut answer, 2, self.kind.to_le_bytes());
        put_at(&mut answer, 4, self.status.0.to_le_bytes());
        put_at(&mut answer, 8, self.data.to_le_bytes());
        answer
    }
}

/// A grant for the backend to keep mapped (`xen_netif_gref`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gref {
    /// The grant.
    pub gref: GrantRef,
    /// `XEN_NETIF_CTRLF_GREF_*`, from the frontend.
    pub flags: u16,
    /// The low half of a [`Status`], from the backend, where the grant was to be given up.
    pub status: u16,
}

impl Gref {
    /// Bytes of one.
    pub const SIZE: usize = 8;

    /// How many fill a page.
    pub const PER_PAGE: usize = hypervisor::PAGE_SIZE / Self::SIZE;

    /// `XEN_NETIF_CTRLF_GREF_readonly`.
    pub const READ_ONLY: u16 = 1 << 0;

    /// Where in an entry its status is, for a backend that writes nothing else.
    pub const STATUS_OFFSET: usize = 6;

    /// Reads one.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h] = *bytes;
        Self {
            gref: GrantRef(u32::from_le_bytes([a, b, c, d])),
            flags: u16::from_le_bytes([e, f]),
            status: u16::from_le_bytes([g, h]),
        }
    }

    /// Writes one.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.gref.0.to_le_bytes();
        let [e, f] = self.flags.to_le_bytes();
        let [g, h] = self.status.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}
