//! Sends a large packet of the kernel's in segments, where the backend does not cut it.
//!
//! The kernel is told what the interface cuts for all packets alike, and it hands over large ones behind
//! VLAN tags as well, which backends do not look behind. Segments for which there is no room are sent
//! later, before anything else that the kernel has.

use hypervisor::event::Events;
use hypervisor::memory::Granting;
use ring::packet::Headers;
use ring::packet::segment::{Cut, say_length};
use ring::wire::netif::ETHERNET_HEADER;

use crate::queue::Queue;
use crate::transmit::{Place, Refused};
use crate::{Checksum, Offload};

/// A packet that is being sent in segments, if there is one.
#[derive(Default)]
pub(super) struct Cutting {
    packet: Vec<u8>,
    /// Payload of a segment.
    size: u16,
    /// The next segment.
    next: usize,
    segment: Vec<u8>,
}

/// How far it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Went {
    /// Whether something was sent.
    pub(super) sent: bool,
    /// Whether room is what the rest waits for.
    pub(super) full: bool,
    /// Whether a packet was lost, or a part of it.
    pub(super) lost: bool,
}

impl Cutting {
    /// Takes the packet of `size` bytes in `place`, which stays the caller's, where its segments are
    /// to be made here. Nothing is being cut before.
    pub(super) fn take<G>(
        &mut self,
        queue: &Queue<G>,
        place: &Place,
        size: usize,
        offload: &Offload,
    ) -> bool
    where
        G: Granting + Events,
    {
        let Some(gso) = offload.gso else { return false };
        let mut head = [0; ETHERNET_HEADER];
        queue.read_place(place, &mut head);
        if !Headers::are_tagged(&head) {
            return false;
        }
        self.packet.resize(size.min(place.len()), 0);
        queue.read_place(place, &mut self.packet);
        say_length(&mut self.packet, size);
        (self.size, self.next) = (gso.size, 0);
        true
    }

    /// Sends what there is room for.
    pub(super) fn go_on<G>(&mut self, queue: &mut Queue<G>) -> Went
    where
        G: Granting + Events,
    {
        let mut went = Went { sent: false, full: false, lost: false };
        if self.packet.is_empty() {
            return went;
        }
        match Cut::new(&self.packet, self.size) {
            Ok(cut) => {
                while let Some(len) = cut.len(self.next) {
                    self.segment.resize(len, 0);
                    let Some(checksum) = cut.write(self.next, &mut self.segment) else {
                        went.lost = true;
                        break;
                    };
                    checksum.complete(&mut self.segment);
                    let said = Offload { checksum: Checksum::Validated, ..Offload::default() };
                    match queue.send(&[&self.segment], said) {
                        Ok(()) => went.sent = true,
                        Err(Refused::Full) => {
                            went.full = true;
                            return went;
                        }
                        Err(_) => {
                            went.lost = true;
                            break;
                        }
                    }
                    self.next = self.next.saturating_add(1);
                }
            }
            Err(_) => went.lost = true,
        }
        self.packet.clear();
        went
    }
}
