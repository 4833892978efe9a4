//! The virtqueue on which a machine receives, and what it takes.
//!
//! ```text
//!   header 12 | packet                 in one chain, or in as many as it takes (MRG_RXBUF)
//! ```
//!
//! Trust: how much room there is, the driver says; where there is too little, packets wait and are lost in the end,
//! as elsewhere. Source: virtio 1.2, 5.1.6.3 and 5.1.6.4.

use std::collections::VecDeque;

use hypervisor::{Peer, PeerFault};
use ring::split::Fault;
use ring::wire::virtio_net::feature;
use ring::{Notify, Recheck};

use super::take::{self, Fitted, Waiting};
use super::{Room, Sink};
use crate::buffer::Buffer;
use crate::connect::vhost_user::{accepts, header_bytes};
use crate::offload::{Accepts, Outcome, for_machine};
use crate::stats::{Loss, Stats};
use crate::virtqueue::{Piece, Taken, Virtqueue, Way};
use crate::vnet::Header;

/// What a machine's driver takes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    accepts: Accepts,
    /// Bytes of the header in front of a packet.
    front: usize,
}

/// A packet, and its header: so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit(usize);

impl take::Shape for Shape {
    type Fit = Fit;

    #[inline]
    fn fit(&self, buffer: &mut Buffer) -> Result<Fitted<Fit>, Loss> {
        match for_machine(buffer, &self.accepts)? {
            Outcome::Whole { gso, summed } => {
                let fit = Fit(buffer.len().saturating_add(self.front));
                Ok(Fitted::Whole { fit, gso, summed })
            }
            Outcome::Cut(size) => Ok(Fitted::Cut(size)),
        }
    }

    #[inline]
    fn is_whole(&self) -> bool {
        self.accepts.tso4 && self.accepts.tso6
    }
}

/// What a machine receives.
#[derive(Debug)]
pub struct Receiving {
    queue: Virtqueue,
    shape: Shape,
    mergeable: bool,
    /// Chains in which nothing is yet, and all their pieces, oldest first.
    posted: VecDeque<Taken>,
    pieces: VecDeque<Piece>,
    /// Bytes of those.
    room: usize,
    /// Of packets that have room: how many chains each, and these.
    counts: VecDeque<u16>,
    placed: VecDeque<Taken>,
}

impl Receiving {
    /// What goes into the chains of `queue`, to a driver with these `features`.
    #[must_use]
    pub fn new(queue: Virtqueue, features: u64) -> Self {
        Self {
            queue,
            shape: Shape { accepts: accepts(features), front: header_bytes(features) },
            mergeable: features & feature::MRG_RXBUF != 0,
            posted: VecDeque::new(),
            pieces: VecDeque::new(),
            room: 0,
            counts: VecDeque::with_capacity(super::BATCH),
            placed: VecDeque::new(),
        }
    }

    /// Takes one more chain; `false` where there is none.
    #[inline]
    fn take(&mut self) -> Result<bool, PeerFault> {
        let Some(taken) = self.queue.take(Way::Write, &mut [], &mut self.pieces)? else {
            return Ok(false);
        };
        if taken.bytes == 0 {
            let fault = Fault::Request { what: "no room for a packet" };
            return Err(fault.by(Peer::Machine));
        }
        self.room = self.room.saturating_add(taken.bytes);
        self.posted.push_back(taken);
        Ok(true)
    }
}

impl Sink for Receiving {
    type Shape = Shape;

    fn shape(&self) -> Shape {
        self.shape
    }

    #[inline]
    fn has(&mut self, fit: &Fit) -> Result<Room, PeerFault> {
        if self.mergeable {
            while self.room < fit.0 {
                if !self.take()? {
                    return Ok(Room::Short);
                }
            }
            return Ok(Room::There);
        }
        if self.posted.is_empty() && !self.take()? {
            return Ok(Room::Short);
        }
        let first = self.posted.front().map_or(0, |taken| taken.bytes);
        Ok(if first < fit.0 { Room::Never } else { Room::There })
    }

    #[inline]
    fn place(&mut self, fit: &Fit) -> Result<(), PeerFault> {
        let (mut left, mut count) = (fit.0, 0_u16);
        while left > 0 {
            let Some(taken) = self.posted.pop_front() else { break };
            self.room = self.room.saturating_sub(taken.bytes);
            left = left.saturating_sub(taken.bytes);
            count = count.saturating_add(1);
            self.placed.push_back(taken);
        }
        self.counts.push_back(count);
        Ok(())
    }

    #[inline]
    fn copy_out(&mut self, going: &mut VecDeque<Waiting<Fit>>, _: &Stats) -> usize {
        let chains = self.placed.len();
        for waiting in going {
            let Some(count) = self.counts.pop_front() else { break };
            // Also where only one chain can be used: it then says so.
            let header = Header { num_buffers: count, ..waiting.buffer.header() }.encode();
            let front = header.get(..self.shape.front).unwrap_or_default();
            let mut rest = [front, waiting.buffer.packet()];
            for _ in 0..count {
                let Some(taken) = self.placed.pop_front() else { break };
                let pieces = self.pieces.drain(..taken.pieces.min(self.pieces.len()));
                let mut written = 0_usize;
                for piece in pieces {
                    written = written.saturating_add(fill(&self.queue, piece, &mut rest));
                }
                self.queue.give_back(written);
            }
        }
        chains
    }

    #[inline]
    fn publish(&mut self) -> Notify {
        self.queue.publish()
    }

    fn rearm(&mut self, _: &Fit) -> Result<Recheck, PeerFault> {
        self.queue.rearm()
    }
}

/// Writes as much of `rest` into `piece` as it has room for, and takes that away from `rest`. Says how much.
#[inline]
fn fill(queue: &Virtqueue, mut piece: Piece, rest: &mut [&[u8]; 2]) -> usize {
    let mut written = 0_usize;
    for part in rest {
        let (now, after) = part.split_at(piece.len.min(part.len()));
        if now.is_empty() {
            continue;
        }
        let (here, behind) = piece.split(now.len());
        queue.write(here, now);
        (*part, piece) = (after, behind);
        written = written.saturating_add(now.len());
    }
    written
}
