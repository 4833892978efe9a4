//! What every transport ends in: a peer, and for each queue two rings and what wakes them.
//!
//! A transport's own module does its handshake and hands over a [`Connection`]; from there on one
//! data path serves them all and does not know which it was.
//!
//! After: `queue`. Trust: the values here were checked by the transport that read them; the rings'
//! memory stays the peer's to write.

pub mod vhost_user;
pub mod xenbus;

use hypervisor::event::Channel;
use hypervisor::{DomId, HostError};
use ring::wire::netif::fit::Takes;

use crate::offload::Sums;

/// What a frontend and this backend have agreed on.
#[derive(Debug)]
#[non_exhaustive]
pub struct Connection<M, C> {
    /// Who the frontend is.
    pub peer: DomId,
    /// What it takes and does.
    pub features: Features,
    /// Two rings and their channels for each queue, in the order of their numbers.
    pub queues: Vec<Link<M, C>>,
    /// The control ring, where it has one.
    pub control: Option<ControlLink<M, C>>,
}

impl<M, C> Connection<M, C> {
    /// A connection to `peer` over `queues`.
    #[must_use]
    pub fn new(
        peer: DomId,
        features: Features,
        queues: Vec<Link<M, C>>,
        control: Option<ControlLink<M, C>>,
    ) -> Self {
        Self { peer, features, queues, control }
    }
}

impl<M, C: Channel> Connection<M, C> {
    /// Has the frontend look at all of its rings.
    ///
    /// # Errors
    ///
    /// The hypervisor refuses.
    pub fn tell(&self) -> Result<(), HostError> {
        let control = self.control.iter().map(|link| &link.channel);
        let mut all = self.queues.iter().flat_map(|link| link.channels.all()).chain(control);
        all.try_for_each(Channel::notify)
    }
}

/// One queue's shared parts.
#[derive(Debug)]
#[non_exhaustive]
pub struct Link<M, C> {
    /// The page of the ring on which the guest sends (a [`Memory`](hypervisor::memory::Memory)).
    pub tx: M,
    /// That of the ring on which it receives.
    pub rx: M,
    /// Our ends of their event channels.
    pub channels: Channels<C>,
}

impl<M, C> Link<M, C> {
    /// A queue that is served from where its rings stand.
    pub fn new(tx: M, rx: M, channels: Channels<C>) -> Self {
        Self { tx, rx, channels }
    }
}

/// What wakes a queue, and its guest (each a [`Channel`], which also is a
/// file descriptor).
#[derive(Clone, Debug)]
pub enum Channels<C> {
    /// One for both rings.
    Both(C),
    /// One for each (`feature-split-event-channels`).
    Split {
        /// For what the guest sends.
        tx: C,
        /// For what it receives.
        rx: C,
    },
}

impl<C> Channels<C> {
    /// The one for what the guest sends.
    #[inline]
    #[must_use]
    pub const fn tx(&self) -> &C {
        match self {
            Self::Both(channel) | Self::Split { tx: channel, .. } => channel,
        }
    }

    /// The one for what the guest receives.
    #[inline]
    #[must_use]
    pub const fn rx(&self) -> &C {
        match self {
            Self::Both(channel) | Self::Split { rx: channel, .. } => channel,
        }
    }

    /// Each once.
    pub fn all(&self) -> impl Iterator<Item = &C> {
        let (one, other) = match self {
            Self::Both(channel) => (channel, None),
            Self::Split { tx, rx } => (tx, Some(rx)),
        };
        std::iter::once(one).chain(other)
    }
}

/// The control ring's shared parts.
#[derive(Debug)]
#[non_exhaustive]
pub struct ControlLink<M, C> {
    /// The ring's page.
    pub ring: M,
    /// Our end of its event channel.
    pub channel: C,
}

impl<M, C> ControlLink<M, C> {
    /// A control ring that is served from where it stands.
    pub fn new(ring: M, channel: C) -> Self {
        Self { ring, channel }
    }
}

/// What was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// What the frontend takes in one packet. Whether it takes hashes, the control ring decides.
    pub takes: Takes,
    /// Which blank checksums it takes.
    pub sums: Sums,
    /// It tells when it posts pages (`feature-rx-notify`).
    pub rx_notify: bool,
    /// It wants only the multicast packets that it lists (`request-multicast-control`).
    pub multicast_control: bool,
}

impl Features {
    /// Those of a frontend that takes `takes` and otherwise says nothing, or nothing but that.
    #[must_use]
    pub const fn new(takes: Takes, sums: Sums) -> Self {
        Self { takes, sums, rx_notify: true, multicast_control: false }
    }
}
