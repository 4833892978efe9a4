//! The network protocol.
//!
//! A device has a pair of rings for each queue and at most one control ring. On [`Tx`] the guest
//! sends: a packet is a chain of requests, one for each piece of a page. On [`Rx`] it receives: it
//! posts empty pages, and a packet comes back as a chain of responses. Between the first and the
//! second link of either chain may stand [`extra`] slots, which say what the packet is rather than
//! where; nothing in such a slot tells that it is one, so a slot is copied out as bytes and read as
//! the one or the other by whoever follows the chain. On [`Control`] the guest says how to spread
//! packets over its queues.
//!
//! A frontend makes transmit chains with [`split`], which a backend follows with [`gather`]; a backend
//! makes receive chains with [`fit`], which a frontend follows with [`collect`].
//!
//! What a slot claims is as yet unchecked when it leaves here. Integers are little-endian. Units:
//! bytes.
//!
//! Source: `xen/include/public/io/netif.h`, RELEASE-4.17. The [`extra::Kind::Xdp`] slot is younger:
//! it is in Linux's copy of that header (`include/xen/interface/io/netif.h`, v5.9), and so are the
//! keys that go with it.

pub mod chain;
pub mod collect;
pub mod control;
pub mod extra;
pub mod fit;
pub mod gather;
pub mod keys;
pub mod rx;
pub mod split;
pub mod tx;

use core::fmt;

use crate::Protocol;

/// `XEN_NETIF_NR_SLOTS_MIN`: every backend takes packets of so many slots.
pub const SLOTS_MIN: usize = 18;

/// Pages that any frontend takes for one received packet. Linux's (v6.1) follows chains of one more, but has
/// room for no more than 17 fragments: with a full first page the eighteenth loses the packet. Its
/// versions before 5.0 follow no more than these.
pub const RX_SLOTS_MOST: usize = 17;

/// `XEN_NETIF_MAX_TX_SIZE`: bytes of the largest packet.
pub const MAX_TX_SIZE: usize = 0xFFFF;

/// Bytes of the largest packet that a guest can be given: the largest that IP has, behind an Ethernet
/// header with two VLAN tags. Received packets have no field for the whole's size to fit.
pub const MAX_RX_SIZE: usize = 65_535 + ETHERNET_HEADER + 8;

/// Bytes of an Ethernet header, which is the least that a packet has.
pub const ETHERNET_HEADER: usize = 14;

/// What became of a request (`NETIF_RSP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Status(pub i16);

impl Status {
    /// `NETIF_RSP_DROPPED`: the packet went nowhere, and that is nobody's fault.
    pub const DROPPED: Self = Self(-2);
    /// `NETIF_RSP_ERROR`: failed.
    pub const ERROR: Self = Self(-1);
    /// `NETIF_RSP_OKAY`: done.
    pub const OKAY: Self = Self(0);
    /// `NETIF_RSP_NULL`: no response; the slot held an extra.
    pub const NULL: Self = Self(1);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DROPPED => f.write_str("dropped"),
            Self::ERROR => f.write_str("error"),
            Self::OKAY => f.write_str("okay"),
            Self::NULL => f.write_str("null"),
            Self(other) => write!(f, "status {other}"),
        }
    }
}

/// A ring on which a guest sends packets.
#[derive(Debug)]
pub enum Tx {}

impl Protocol for Tx {
    type Request = tx::Slot;
    type Response = tx::Response;
    type Slot = [u8; tx::Slot::SIZE];
    type Answer = [u8; tx::Response::SIZE];

    #[inline]
    fn decode_request(slot: &Self::Slot) -> tx::Slot {
        tx::Slot(*slot)
    }

    #[inline]
    fn encode_request(request: &tx::Slot, slot: &mut Self::Slot) {
        *slot = request.0;
    }

    #[inline]
    fn decode_response(answer: &Self::Answer) -> tx::Response {
        tx::Response::decode(answer)
    }

    #[inline]
    fn encode_response(response: &tx::Response, answer: &mut Self::Answer) {
        *answer = response.encode();
    }
}

/// A ring on which a guest receives packets.
///
/// The response to a request goes into the slot that the request was in: extras lie over the field
/// that would say which request is answered, and frontends go by the position instead. A backend
/// that answers in the order in which it takes requests does so of itself.
#[derive(Debug)]
pub enum Rx {}

impl Protocol for Rx {
    type Request = rx::Request;
    type Response = rx::Slot;
    type Slot = [u8; rx::Slot::SIZE];
    type Answer = [u8; rx::Slot::SIZE];

    #[inline]
    fn decode_request(slot: &Self::Slot) -> rx::Request {
        rx::Request::decode(slot)
    }

    #[inline]
    fn encode_request(request: &rx::Request, slot: &mut Self::Slot) {
        *slot = request.encode();
    }

    #[inline]
    fn decode_response(answer: &Self::Answer) -> rx::Slot {
        rx::Slot(*answer)
    }

    #[inline]
    fn encode_response(response: &rx::Slot, answer: &mut Self::Answer) {
        *answer = response.0;
    }
}

/// A control ring.
#[derive(Debug)]
pub enum Control {}

impl Protocol for Control {
    type Request = control::Request;
    type Response = control::Response;
    type Slot = [u8; control::Request::SIZE];
    type Answer = [u8; control::Response::SIZE];

    #[inline]
    fn decode_request(slot: &Self::Slot) -> control::Request {
        control::Request::decode(slot)
    }

    #[inline]
    fn encode_request(request: &control::Request, slot: &mut Self::Slot) {
        *slot = request.encode();
    }

    #[inline]
    fn decode_response(answer: &Self::Answer) -> control::Response {
        control::Response::decode(answer)
    }

    #[inline]
    fn encode_response(response: &control::Response, answer: &mut Self::Answer) {
        *answer = response.encode();
    }
}

#[cfg(test)]
mod tests;
