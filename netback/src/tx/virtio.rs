//! The virtqueue on which a machine sends.
//!
//! ```text
//!   header 12 | packet                 in however many buffers; how they are cut means nothing
//! ```
//!
//! The header is copied with the chain, and the packet once it may go. Trust: every field is the driver's claim; what
//! it claims of a packet and did not agree on loses the packet. Source: virtio 1.2, 5.1.6.2.

use std::collections::VecDeque;

use hypervisor::PeerFault;
use ring::wire::virtio_net::feature;
use ring::{Notify, Recheck};

use super::admit::{Admit, Needs};
use super::{Fate, Source, Staged};
use crate::buffer::ROOM;
use crate::connect::vhost_user::header_bytes;
use crate::offload::{Claimed, Claims, Segments};
use crate::stats::{Loss, Stats};
use crate::virtqueue::{Piece, Virtqueue, Way};
use crate::vnet::{Header, flags, gso};

/// Bytes of an Ethernet header, without which nothing is a packet.
const LEAST: usize = 14;

/// What a machine sends.
#[derive(Debug)]
pub struct Sending {
    queue: Virtqueue,
    features: u64,
    /// Of all chains that are not copied, oldest first.
    pieces: VecDeque<Piece>,
    held: Option<Packet>,
    admit: Admit,
}

/// A packet that was taken; its head is owed by the queue.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pieces: usize,
    size: usize,
    claims: Claims,
}

impl Sending {
    /// What comes on `queue` from a driver with these `features`.
    #[must_use]
    pub fn new(queue: Virtqueue, features: u64) -> Self {
        let pieces = VecDeque::with_capacity(super::BATCH);
        Self { queue, features, pieces, held: None, admit: Admit::default() }
    }

    #[inline]
    fn take(&mut self) -> Result<Option<Packet>, PeerFault> {
        let mut bytes = [0; Header::SIZE];
        let front = bytes.get_mut(..header_bytes(self.features)).unwrap_or_default();
        let Some(taken) = self.queue.take(Way::Read, front, &mut self.pieces)? else {
            return Ok(None);
        };
        let claims = claims(&Header::decode(&bytes), self.features);
        Ok(Some(Packet { pieces: taken.pieces, size: taken.bytes, claims }))
    }
}

impl Source for Sending {
    type Chain = Packet;

    #[inline]
    fn next(&mut self, needs: &mut Needs<'_>) -> Result<Option<Staged<Packet>>, PeerFault> {
        let packet = match self.held.take() {
            Some(packet) => packet,
            None => match self.take()? {
                Some(packet) => packet,
                None => return Ok(None),
            },
        };
        let (buffer, fate) = match packet.size {
            0..LEAST => (None, Fate::Lost(Loss::TooShort)),
            LEAST..=ROOM => {
                let Some(buffer) = self.admit.admit(packet.size, 0, needs) else {
                    self.held = Some(packet);
                    return Ok(None);
                };
                (Some(buffer), Fate::Done)
            }
            _ => (None, Fate::Lost(Loss::TooLarge)),
        };
        self.admit.passed();
        Ok(Some(Staged { chain: packet, slots: 1, buffer, claims: packet.claims, fate }))
    }

    #[inline]
    fn copy_in(&mut self, staged: &mut VecDeque<Staged<Packet>>, _: &Stats) {
        for Staged { chain, buffer, .. } in staged {
            let pieces = self.pieces.drain(..chain.pieces.min(self.pieces.len()));
            let Some(buffer) = buffer else { continue };
            let mut rest = buffer.packet_mut();
            for piece in pieces {
                let Some((part, after)) = rest.split_at_mut_checked(piece.len) else { break };
                self.queue.read(piece, part);
                rest = after;
            }
        }
    }

    #[inline]
    fn answer(&mut self, _: Packet, _: Fate) {
        // A driver is told nothing of a packet but that its buffers are its own again.
        self.queue.give_back(0);
    }

    #[inline]
    fn publish(&mut self) -> Notify {
        self.queue.publish()
    }

    fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        if self.held.is_some() { Ok(Recheck::Quiet) } else { self.queue.rearm() }
    }

    fn until(&self) -> Option<u64> {
        self.admit.until()
    }

    fn owed(&self) -> usize {
        self.queue.owed()
    }
}

/// What `header` says, as far as a driver with these `features` may say so.
fn claims(header: &Header, features: u64) -> Claims {
    let blank = header.flags & flags::NEEDS_CSUM != 0;
    let checksum = if blank {
        Claimed::BlankAt { start: header.csum_start, offset: header.csum_offset }
    } else {
        Claimed::Unchecked
    };
    let ecn = header.gso_type & gso::ECN != 0;
    let kind = header.gso_type & !gso::ECN;
    let needed = match kind {
        gso::NONE => return Claims { checksum, segments: None },
        gso::TCPV4 => feature::HOST_TSO4,
        gso::TCPV6 => feature::HOST_TSO6,
        gso::UDP_L4 => feature::HOST_USO,
        _ => u64::MAX,
    };
    let agreed = features & needed == needed && (!ecn || features & feature::HOST_ECN != 0);
    let kind = if agreed { kind } else { Segments::UNKNOWN };
    let segments = Some(Segments { kind, size: header.gso_size, ecn });
    Claims { checksum, segments }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_agreed_on_is_believed() {
        let said = |gso_type, features| {
            let header = Header { flags: 1, gso_type, gso_size: 1448, ..Header::default() };
            claims(&header, features).segments.map(|segments| (segments.kind, segments.ecn))
        };
        assert_eq!(said(gso::NONE, 0), None);
        assert_eq!(said(gso::TCPV4, feature::HOST_TSO4), Some((gso::TCPV4, false)));
        assert_eq!(said(gso::TCPV4, feature::HOST_TSO6), Some((Segments::UNKNOWN, false)));
        assert_eq!(said(gso::UDP_L4, feature::HOST_USO), Some((gso::UDP_L4, false)));
        let both = feature::HOST_TSO6 | feature::HOST_ECN;
        assert_eq!(said(gso::TCPV6 | gso::ECN, both), Some((gso::TCPV6, true)));
        let without = feature::HOST_TSO6;
        assert_eq!(said(gso::TCPV6 | gso::ECN, without), Some((Segments::UNKNOWN, true)));
        assert_eq!(said(3, u64::MAX - 1), Some((Segments::UNKNOWN, false)), "UFO is not offered");
    }
}
