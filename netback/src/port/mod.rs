//! What lies behind the device: where the guest's packets go, and where those for it come from.
//!
//! A [`Port`] belongs to one queue and to the thread that made it. Packets are moved in batches: a
//! queue hands over what there is to send and then has one [`turn`](Port::turn) for both directions;
//! when there is nothing to do, it sleeps in the port, which watches the guest's events as well.
//!
//! Packets have the [header](crate::vnet) in front of them in either direction.

pub mod inner;
pub mod interface;
mod kernel;
pub mod memory;
pub mod packet;
pub mod pcap;
pub(crate) mod poll;
pub mod tap;

pub use kernel::KernelPort;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use hypervisor::HostError;

use crate::buffer::{Buffer, Pool};

/// Where packets go to and come from.
pub trait Port {
    /// How many packets it takes now. A queue sends no more between two turns.
    fn room(&self) -> usize;

    /// Takes a packet on, to go out with the next turn in the order in which they came. The
    /// buffer is given to the pool when the packet has gone.
    fn send(&mut self, packet: Buffer);

    /// Sends what was taken on, and appends what came in to `into`, `most` packets at most, in
    /// buffers of the pool. Costs next to nothing where there is neither.
    ///
    /// # Errors
    ///
    /// The port is beyond use.
    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError>;

    /// Sleeps until a turn may bring something, or one of the descriptors is readable, or `timeout`
    /// has passed; sometimes wakes early. What comes in counts only where the queue is to
    /// `receive` it, and that there is room to send only where there was none. Says which of the
    /// descriptors, 8 at most, are readable; that others are may be found by the next wait only.
    ///
    /// # Errors
    ///
    /// The port is beyond use.
    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<Readable, HostError>;

    /// Tells the host's side whether anybody takes its packets.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    fn carrier(&mut self, up: bool) -> Result<(), HostError>;
}

/// What a turn did with the packets that were to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turned {
    /// So many went out.
    pub sent: u64,
    /// So many were refused, and are lost.
    pub lost: u64,
}

/// Which of some descriptors are readable, by their places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readable(u8);

impl Readable {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Whether the descriptor in that place is.
    #[inline]
    #[must_use]
    pub fn has(self, place: usize) -> bool {
        self.0 & bit(place) != 0
    }
}

impl FromIterator<usize> for Readable {
    /// Those in these places.
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        Self(places.into_iter().fold(0, |all, place| all | bit(place)))
    }
}

fn bit(place: usize) -> u8 {
    u32::try_from(place).ok().and_then(|place| 1_u8.checked_shl(place)).unwrap_or(0)
}

impl<P: Port + ?Sized> Port for Box<P> {
    fn room(&self) -> usize {
        (**self).room()
    }

    fn send(&mut self, packet: Buffer) {
        (**self).send(packet);
    }

    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError> {
        (**self).turn(pool, most, into)
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<Readable, HostError> {
        (**self).wait(watched, receive, timeout)
    }

    fn carrier(&mut self, up: bool) -> Result<(), HostError> {
        (**self).carrier(up)
    }
}
