//! What every transport ends in: a peer, and for each queue a ring and a channel.
//!
//! A transport's own module does its handshake and hands over a [`Connection`]; from there on one
//! data path serves them all and does not know which it was.
//!
//! After: `receive`. Trust: the values here were checked by the transport that read them; the ring's
//! memory stays the peer's to write.

pub mod vhost_user;
pub mod xenbus;

use hypervisor::DomId;

/// What a frontend and this backend have agreed on.
#[derive(Debug)]
#[non_exhaustive]
pub struct Connection<M, C> {
    /// Who the frontend is.
    pub peer: DomId,
    /// How it lays its requests out.
    pub layout: Layout,
    /// What both can do.
    pub features: Features,
    /// One ring and channel for each queue, in the order of their numbers.
    pub queues: Vec<Link<M, C>>,
}

impl<M, C> Connection<M, C> {
    /// A connection to `peer` over `queues`.
    #[must_use]
    pub fn new(peer: DomId, layout: Layout, features: Features, queues: Vec<Link<M, C>>) -> Self {
        Self { peer, layout, features, queues }
    }
}

/// One queue's shared parts.
#[derive(Debug)]
#[non_exhaustive]
pub struct Link<M, C> {
    /// The ring's pages (a [`Memory`](hypervisor::memory::Memory)), side by side.
    pub ring: M,
    /// Our end of its event channel (a [`Channel`](hypervisor::event::Channel)), which also is a
    /// file descriptor.
    pub channel: C,
}

impl<M, C> Link<M, C> {
    /// A queue that is served from its ring's first request on.
    pub fn new(ring: M, channel: C) -> Self {
        Self { ring, channel }
    }
}

/// What was negotiated beyond plain requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// The frontend uses the same grants again and again (`feature-persistent` at both ends).
    pub persistent: bool,
    /// The most segments an indirect request may have, as told to the frontend in
    /// `feature-max-indirect-segments`; 0 where there are no indirect requests.
    pub indirect_segments: u16,
}

impl Features {
    /// The most segments of an indirect request that this backend offers: 1 MiB in pages, so that
    /// one page of descriptors serves any request.
    pub const MAX_INDIRECT_SEGMENTS: u16 = 256;

    /// What a frontend can use that wrote no feature keys at all.
    #[must_use]
    pub const fn new(persistent: bool) -> Self {
        Self { persistent, indirect_segments: Self::MAX_INDIRECT_SEGMENTS }
    }
}

/// How requests and responses lie in a ring's slots: the frontend's ABI, from its `protocol` key
/// (`XEN_IO_PROTO_ABI_*`, io/protocols.h, RELEASE-4.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// As a 32-bit x86 compiler lays them out (`x86_32-abi`).
    X86_32,
    /// As a 64-bit x86 compiler lays them out (`x86_64-abi`).
    X86_64,
    /// As this machine's compiler lays them out.
    Native,
}
