//! Packets from the backend.
//!
//! Before it: the receive ring. After it: the caller, who finds the packet in pages of the queue's
//! pool, and gives them back. As long as a packet lies there the backend may still write to it, so
//! whatever is to be looked at is copied out first: as [`Queue::receive_into`] does with all of it.

use alloc::vec::Vec;

use hypervisor::PeerFault;
use hypervisor::event::Events;
use hypervisor::frontend::Page;
use hypervisor::memory::{Granting, Memory};
use ring::packet::transport;
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::collect::{Arrival, MOST};
use ring::wire::netif::rx::Request;

use crate::link::Link;
use crate::queue::Queue;

/// A packet that lies in the queue's own pages.
#[derive(Debug)]
#[must_use = "pages that are not released are missing until the next connection"]
pub struct Received {
    /// The connection whose pages they are.
    epoch: u32,
    pieces: [Piece; MOST],
    count: usize,
    size: usize,
    offload: Offload,
}

#[derive(Clone, Copy, Default, Debug)]
struct Piece {
    page: Page,
    offset: u16,
    size: u16,
}

impl Received {
    /// Bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.size
    }

    /// Whether it has none, which cannot be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// What the backend says of it, which need not be true.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Where it lies in [`Queue::rx_memory`], as offset and length of each piece.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let pieces = self.pieces.get(..self.count).unwrap_or_default();
        pieces.iter().map(|piece| {
            (piece.page.offset().saturating_add(piece.offset.into()), piece.size.into())
        })
    }
}

impl<H: Granting + Events> Queue<H> {
    /// The next packet, if there is one. What the backend did wrong ends the queue; see
    /// [`fault`](Self::fault).
    pub fn receive(&mut self) -> Option<Received> {
        loop {
            match self.arrive() {
                Ok(Some(arrived)) => match arrived {
                    Ok(received) => {
                        let counters = &mut self.counters;
                        counters.received = counters.received.wrapping_add(1);
                        let bytes = received.size as u64;
                        counters.received_bytes = counters.received_bytes.wrapping_add(bytes);
                        return Some(received);
                    }
                    Err(Unusable) => {
                        self.counters.unusable = self.counters.unusable.wrapping_add(1);
                    }
                },
                Ok(None) => return None,
                Err(fault) => {
                    self.break_off(fault);
                    return None;
                }
            }
        }
    }

    fn arrive(&mut self) -> Result<Option<Result<Received, Unusable>>, PeerFault> {
        let Some(link) = self.link.as_mut().filter(|_| self.fault.is_none()) else {
            return Ok(None);
        };
        loop {
            let at = link.rx.ring.taken();
            let Some(slot) = link.rx.ring.take_response().map_err(|fault| fault.by(link.peer))?
            else {
                link.collect.end().map_err(|fault| fault.by(link.peer))?;
                return Ok(None);
            };
            let first = *link.chain.get_or_insert(at);
            let arrival = link.collect.feed(&slot).map_err(|fault| fault.by(link.peer))?;
            if let Some(arrival) = arrival {
                link.chain = None;
                return link.take_in(first, &arrival, self.epoch).map(Some);
            }
        }
    }

    /// Copies bytes of a packet out, from byte `at` of it on; says how many.
    pub fn read(&self, received: &Received, at: usize, into: &mut [u8]) -> usize {
        let Some(link) = self.link.as_ref().filter(|_| received.epoch == self.epoch) else {
            return 0;
        };
        let (mut skip, mut done) = (at, 0_usize);
        for (offset, len) in received.pieces() {
            let skipped = skip.min(len);
            skip = skip.saturating_sub(skipped);
            let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
            let now = len.saturating_sub(skipped).min(rest.len());
            let Some(rest) = rest.get_mut(..now) else { break };
            let copied = link.rx.pool.memory().read_at(offset.saturating_add(skipped), rest);
            debug_assert_eq!(copied, Ok(()), "pieces lie inside pages");
            done = done.saturating_add(now);
        }
        done
    }

    /// The memory that packets lie in, for the kernel to take them from.
    #[must_use]
    pub fn rx_memory(&self) -> Option<&H::Memory> {
        self.link.as_ref().map(|link| link.rx.pool.memory())
    }

    /// Gives a packet's pages back.
    pub fn release(&mut self, received: Received) {
        let Some(link) = self.link.as_mut().filter(|_| received.epoch == self.epoch) else {
            return;
        };
        for piece in received.pieces.get(..received.count).unwrap_or_default() {
            link.rx.pool.give(piece.page);
        }
    }

    /// Copies the next packet out as a whole, in place of what is in `packet`, and says what is to
    /// be said of it. A blank checksum is completed unless we said that we take such packets, and one
    /// that cannot be completed, or that is to be cut though we do not take that, is lost.
    pub fn receive_into(&mut self, packet: &mut Vec<u8>) -> Option<Offload> {
        loop {
            let received = self.receive()?;
            packet.resize(received.size, 0);
            self.read(&received, 0, packet);
            let mut offload = received.offload;
            self.release(received);
            let takes = self.link.as_ref().map(|link| link.receives).unwrap_or_default();
            let blank = offload.checksum == Checksum::Blank && offload.gso.is_none();
            let cut = offload.gso.is_some() && !takes.gso_tcpv4 && !takes.gso_tcpv6;
            if blank && !(takes.checksum_v4 && takes.checksum_v6) {
                let Ok(checksum) = transport::Checksum::find(packet) else {
                    self.counters.unusable = self.counters.unusable.wrapping_add(1);
                    continue;
                };
                checksum.complete(packet);
                offload.checksum = Checksum::Validated;
            }
            if cut {
                self.counters.unusable = self.counters.unusable.wrapping_add(1);
                continue;
            }
            return Some(offload);
        }
    }

    /// Posts pages for the backend to fill.
    pub(crate) fn post(&mut self) {
        let Some(link) = self.link.as_mut().filter(|_| self.fault.is_none()) else { return };
        let want = link.refill.want(link.rx.ring.outstanding());
        for _ in 0..want.min(link.rx.ring.free()) {
            let Some(page) = link.rx.pool.take() else { break };
            // The next position is behind all that is outstanding.
            let at = link.rx.ring.taken().add(link.rx.ring.outstanding());
            let request = Request { id: link.posted.id(at), gref: link.rx.pool.gref(page) };
            let pushed = link.rx.ring.push(&request);
            debug_assert_eq!(pushed, Ok(at), "free slots were counted");
            link.posted.post(at, page);
        }
    }
}

/// There was no usable packet in a chain.
struct Unusable;

impl<H: Granting + Events> Link<H> {
    /// Takes the pages of a chain off the ring, all of which are ours again, and keeps those that
    /// have a packet in them.
    fn take_in(
        &mut self,
        first: ring::RingIndex,
        arrival: &Arrival,
        epoch: u32,
    ) -> Result<Result<Received, Unusable>, PeerFault> {
        for (slot, id) in arrival.pages() {
            let at = first.add(u32::try_from(slot).unwrap_or(u32::MAX));
            if !self.posted.is(at, id) {
                return Err(PeerFault::new(self.peer, "response to another request", id));
            }
        }
        let packet = arrival.packet();
        let (size, offload) = packet.unwrap_or_default();
        let none = Piece::default();
        let mut received = Received { epoch, pieces: [none; MOST], count: 0, size, offload };
        let mut parts = arrival.pieces().filter(|_| packet.is_ok()).peekable();
        for slot in 0..arrival.slots() {
            let at = first.add(u32::try_from(slot).unwrap_or(u32::MAX));
            // Every slot that can be answered was posted with a page.
            let Some(page) = self.posted.take(at) else { continue };
            let part = parts.next_if(|part| part.slot == slot);
            match (part, received.pieces.get_mut(received.count)) {
                (Some(part), Some(room)) => {
                    *room = Piece { page, offset: part.offset, size: part.size };
                    received.count = received.count.saturating_add(1);
                }
                _ => self.rx.pool.give(page),
            }
        }
        Ok(if packet.is_ok() { Ok(received) } else { Err(Unusable) })
    }
}
