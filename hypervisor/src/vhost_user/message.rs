//! What is sent over the socket: a header of three words, and bytes that its request gives a meaning.

use crate::{Peer, PeerFault};

/// Bytes of a header.
pub(super) const HEADER: usize = 12;
/// The most bytes behind it: more than any request has a use for.
pub(super) const MOST: usize = 4096;
/// The most descriptors beside a message: one for each of a memory table's regions.
pub(super) const MOST_DESCRIPTORS: usize = 8;

/// The protocol's only version, in a header's flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Requests of the monitor's (`VHOST_USER_*`).
pub(super) mod request {
    pub(in super::super) const GET_FEATURES: u32 = 1;
    pub(in super::super) const SET_FEATURES: u32 = 2;
    pub(in super::super) const SET_OWNER: u32 = 3;
    pub(in super::super) const RESET_OWNER: u32 = 4;
    pub(in super::super) const SET_MEM_TABLE: u32 = 5;
    pub(in super::super) const SET_LOG_BASE: u32 = 6;
    pub(in super::super) const SET_LOG_FD: u32 = 7;
    pub(in super::super) const SET_VRING_NUM: u32 = 8;
    pub(in super::super) const SET_VRING_ADDR: u32 = 9;
    pub(in super::super) const SET_VRING_BASE: u32 = 10;
    pub(in super::super) const GET_VRING_BASE: u32 = 11;
    pub(in super::super) const SET_VRING_KICK: u32 = 12;
    pub(in super::super) const SET_VRING_CALL: u32 = 13;
    pub(in super::super) const SET_VRING_ERR: u32 = 14;
    pub(in super::super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(in super::super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(in super::super) const GET_QUEUE_NUM: u32 = 17;
    pub(in super::super) const SET_VRING_ENABLE: u32 = 18;
    pub(in super::super) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(in super::super) const GET_CONFIG: u32 = 24;
    pub(in super::super) const SET_CONFIG: u32 = 25;
    pub(in super::super) const GET_INFLIGHT_FD: u32 = 31;
    pub(in super::super) const SET_INFLIGHT_FD: u32 = 32;
    pub(in super::super) const RESET_DEVICE: u32 = 34;
    pub(in super::super) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(in super::super) const ADD_MEM_REG: u32 = 37;
    pub(in super::super) const REM_MEM_REG: u32 = 38;
    pub(in super::super) const SET_STATUS: u32 = 39;
    pub(in super::super) const GET_STATUS: u32 = 40;
}

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, which we send.
pub(super) const CONFIG_CHANGED: u32 = 2;

/// What can be used once both ends have said so (`VHOST_USER_PROTOCOL_F_*`).
pub(super) mod protocol {
    pub(in super::super) const MQ: u64 = 1 << 0;
    pub(in super::super) const LOG_SHMFD: u64 = 1 << 1;
    pub(in super::super) const REPLY_ACK: u64 = 1 << 3;
    pub(in super::super) const BACKEND_REQ: u64 = 1 << 5;
    pub(in super::super) const CONFIG: u64 = 1 << 9;
    pub(in super::super) const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub(in super::super) const RESET_DEVICE: u64 = 1 << 13;
    pub(in super::super) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub(in super::super) const STATUS: u64 = 1 << 16;
    /// All that this end can do.
    pub(in super::super) const OFFERED: u64 = MQ
        | LOG_SHMFD
        | REPLY_ACK
        | BACKEND_REQ
        | CONFIG
        | INFLIGHT_SHMFD
        | RESET_DEVICE
        | CONFIGURE_MEM_SLOTS
        | STATUS;
}

/// What is in front of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    pub(super) len: u32,
}

impl Header {
    pub(super) fn parse(bytes: [u8; HEADER]) -> Result<Self, PeerFault> {
        let mut fields = Fields::new(&bytes);
        let header = Self { request: fields.u32()?, flags: fields.u32()?, len: fields.u32()? };
        if header.flags & VERSION_MASK != VERSION || header.flags & REPLY != 0 {
            let flags = format!("{:#x} with request {}", header.flags, header.request);
            return Err(fault("message_flags", flags));
        }
        if header.len as usize > MOST {
            let len = format!("{} with request {}", header.len, header.request);
            return Err(fault("message_length", len));
        }
        Ok(header)
    }

    pub(super) const fn wants_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A message of ours: an answer to `request`, or with `own` a request.
pub(super) fn compose(request: u32, own: bool, payload: &[u8]) -> Vec<u8> {
    let flags = if own { VERSION } else { VERSION | REPLY };
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER.saturating_add(payload.len()));
    for word in [request, flags, len] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// Says what a monitor did wrong.
pub(super) fn fault(what: &'static str, value: impl std::fmt::Display) -> PeerFault {
    PeerFault::new(Peer::Machine, what, value)
}

/// A payload's fields, one after the other.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], PeerFault> {
        let (first, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| fault("message_too_short", self.0.len()))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u16(&mut self) -> Result<u16, PeerFault> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PeerFault> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, PeerFault> {
        self.take().map(u64::from_ne_bytes)
    }
}

/// A region of the machine's memory, as it is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// Where the machine has it.
    pub(super) guest: u64,
    /// How many bytes.
    pub(super) len: u64,
    /// Where the monitor has it: the addresses of rings are of this kind.
    pub(super) user: u64,
    /// Where it begins in the file.
    pub(super) offset: u64,
}

impl Announced {
    pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Self, PeerFault> {
        Ok(Self {
            guest: fields.u64()?,
            len: fields.u64()?,
            user: fields.u64()?,
            offset: fields.u64()?,
        })
    }
}
