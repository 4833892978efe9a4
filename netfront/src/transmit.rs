//! Packets to the backend.
//!
//! Before it: the caller, with the bytes of a packet, or with a [`Place`] that it fills itself. After
//! it: the transmit ring. A packet lies in pages of the queue's pool, so the backend reaches nothing
//! else; each page is free again when the request that names it was answered.
//!
//! What the backend does not take is done here, or refused: a checksum that it does not complete is
//! completed; a large packet that it does not cut must be cut by whoever made it. Behind a VLAN tag no
//! backend is asked for either.

use alloc::vec::Vec;

use hypervisor::event::Events;
use hypervisor::frontend::Page;
use hypervisor::memory::{Granting, Memory};
use hypervisor::{PAGE_SIZE, PeerFault};
use ring::packet::{Headers, transport};
use ring::wire::netif::chain::{Checksum, Multicast, Offload};
use ring::wire::netif::extra::GsoProtocol;
use ring::wire::netif::gather::Piece;
use ring::wire::netif::split::{Split, multicast};
use ring::wire::netif::{ETHERNET_HEADER, MAX_TX_SIZE, Status};

use crate::link::Link;
use crate::negotiate::Offloads;
use crate::queue::Queue;
use crate::shadow::Lie;

/// Pages of the largest packet.
const PAGES: usize = MAX_TX_SIZE.div_ceil(PAGE_SIZE);

/// `ETH_P_IPV6`.
const IPV6: [u8; 2] = [0x86, 0xDD];

/// What is to be known of a packet's first header.
struct Front {
    ipv6: bool,
    /// It has a VLAN tag. Linux's backend (v6.1) looks for IP right behind the Ethernet header, and
    /// drops what it is to complete or to cut and does not find.
    tagged: bool,
}

/// Why a packet was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The ring is full. Wait for the backend, then try again.
    #[error("the transmit ring is full")]
    Full,
    /// There is no backend at the moment, or not any more: networks lose such packets.
    #[error("there is no backend")]
    Unlinked,
    /// Its length cannot be.
    #[error("a packet of {size} bytes, where {most} are the most")]
    Size {
        /// Bytes it has.
        size: usize,
        /// The most that this backend takes.
        most: usize,
    },
    /// It is to be cut into segments, and this backend does not do that.
    #[error("a packet to be segmented, which the backend does not do")]
    Segment,
    /// Its checksum is to be completed, and there is none.
    #[error("a packet whose checksum cannot be completed")]
    Checksum,
    /// The backend keeps no list of multicast addresses for us.
    #[error("the backend keeps no multicast list")]
    Multicast,
}

/// Pages of the queue's own, to be filled with a packet.
#[derive(Debug)]
#[must_use = "a place that is neither sent nor given back is missing until the next connection"]
pub struct Place {
    /// The connection whose pages they are.
    epoch: u32,
    pages: [Page; PAGES],
    count: usize,
}

impl Place {
    /// Bytes that fit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.saturating_mul(PAGE_SIZE)
    }

    /// Whether none do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn pages(&self) -> &[Page] {
        self.pages.get(..self.count).unwrap_or_default()
    }

    /// Where it lies in [`Queue::tx_memory`], as offset and length of each run of pages.
    pub fn runs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.pages().chunk_by(|a, b| a.offset().checked_add(PAGE_SIZE) == Some(b.offset())).map(
            |run| {
                let first = run.first().map_or(0, |page| page.offset());
                (first, run.len().saturating_mul(PAGE_SIZE))
            },
        )
    }
}

impl<H: Granting + Events> Queue<H> {
    /// What may be sent: nothing while there is no backend.
    #[must_use]
    pub fn sends(&self) -> Option<Offloads> {
        self.link.as_ref().map(|link| link.sends)
    }

    /// The longest packet that the backend takes.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.link.as_ref().map_or(0, Link::longest)
    }

    /// Takes a packet in `pieces` to be sent; the backend is told of it with the next
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn send(&mut self, pieces: &[&[u8]], offload: Offload) -> Result<(), Refused> {
        let size = pieces.iter().map(|piece| piece.len()).sum();
        let place = self.place(size)?;
        self.write(&place, pieces);
        self.send_place(place, size, offload)
    }

    /// Takes room for a packet of up to `size` bytes.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn place(&mut self, size: usize) -> Result<Place, Refused> {
        let link = self.link.as_mut().filter(|_| self.fault.is_none()).ok_or(Refused::Unlinked)?;
        let (most, pages) = (link.longest(), size.div_ceil(PAGE_SIZE).max(1));
        if size > most {
            return Err(Refused::Size { size, most });
        }
        // A slot for each page, and for each extra that there may be.
        let slots = pages.saturating_add(2);
        if (link.tx.ring.free() as usize) < slots || link.tx.pool.available() < pages {
            self.reap();
        }
        let (Some(link), None) = (self.link.as_mut(), &self.fault) else {
            return Err(Refused::Unlinked);
        };
        if (link.tx.ring.free() as usize) < slots || link.tx.pool.available() < pages {
            return Err(Refused::Full);
        }
        let mut place = Place { epoch: self.epoch, pages: [Page::default(); PAGES], count: 0 };
        for room in place.pages.iter_mut().take(pages) {
            if let Some(page) = link.tx.pool.take() {
                *room = page;
                place.count = place.count.saturating_add(1);
            }
        }
        Ok(place)
    }

    /// Copies `pieces` into a place, one behind the other; what does not fit is left out.
    pub fn write(&self, place: &Place, pieces: &[&[u8]]) {
        let Some(link) = self.link.as_ref().filter(|_| place.epoch == self.epoch) else { return };
        let memory = link.tx.pool.memory();
        let mut runs = place.runs();
        let (mut at, mut left) = (0_usize, 0_usize);
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                if left == 0 {
                    let Some(run) = runs.next() else { return };
                    (at, left) = run;
                }
                let Some((now, later)) = rest.split_at_checked(rest.len().min(left)) else {
                    return;
                };
                let copied = memory.write_at(at, now);
                debug_assert_eq!(copied, Ok(()), "the pool's pages lie inside the pool");
                (at, left) = (at.saturating_add(now.len()), left.saturating_sub(now.len()));
                rest = later;
            }
        }
    }

    /// The memory that places lie in, to be filled by the kernel. What is written anywhere else in it
    /// spoils packets that are on their way.
    #[must_use]
    pub fn tx_memory(&self) -> Option<&H::Memory> {
        self.link.as_ref().map(|link| link.tx.pool.memory())
    }

    /// Copies the beginning of what is in a place out, as far as there is any.
    pub fn read_place(&self, place: &Place, into: &mut [u8]) {
        if let Some(link) = self.link.as_ref().filter(|_| place.epoch == self.epoch) {
            link.copy_out(place, into);
        }
    }

    /// Gives a place back that was not needed.
    pub fn put_back(&mut self, place: Place) {
        if let Some(link) = self.link.as_mut().filter(|_| place.epoch == self.epoch) {
            place.pages().iter().for_each(|page| link.tx.pool.give(*page));
        }
    }

    /// Sends the first `size` bytes of a place, of which `offload` is said. The place is used up, or
    /// given back where the packet is refused.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn send_place(
        &mut self,
        mut place: Place,
        size: usize,
        mut offload: Offload,
    ) -> Result<(), Refused> {
        if let Err(refused) = self.check(&place, size, &mut offload) {
            self.put_back(place);
            return Err(refused);
        }
        let Some(link) = &mut self.link else { return Err(Refused::Unlinked) };
        let needed = size.div_ceil(PAGE_SIZE);
        for page in place.pages().iter().skip(needed) {
            link.tx.pool.give(*page);
        }
        place.count = needed;
        let none = Piece { gref: hypervisor::GrantRef(0), offset: 0, size: 0 };
        let (mut pieces, mut ids, mut left) = ([none; PAGES], [0; PAGES], size);
        for ((page, piece), id) in place.pages().iter().zip(&mut pieces).zip(&mut ids) {
            let len = left.min(PAGE_SIZE);
            left = left.saturating_sub(len);
            let gref = link.tx.pool.gref(*page);
            *piece = Piece { gref, offset: 0, size: u16::try_from(len).unwrap_or(0) };
            // There is an entry for each slot, and `place` saw that slots are free.
            *id = link.shadow.ask(Some(*page)).unwrap_or(u16::MAX);
        }
        let pieces = pieces.get(..needed).unwrap_or_default();
        let split = Split::new(pieces, ids.get(..needed).unwrap_or_default(), offload);
        debug_assert!(split.is_ok(), "{split:?}");
        if let Ok(split) = split {
            for slot in split.slots() {
                let pushed = link.tx.ring.push(&slot);
                debug_assert!(pushed.is_ok(), "the place was taken with its slots");
            }
            link.shadow.ask_extras(offload.extras());
        }
        self.counters.sent = self.counters.sent.wrapping_add(1);
        self.counters.sent_bytes = self.counters.sent_bytes.wrapping_add(size as u64);
        Ok(())
    }

    /// Whether the packet can be sent to this backend; does to it what the backend would not.
    fn check(&mut self, place: &Place, size: usize, offload: &mut Offload) -> Result<(), Refused> {
        let link = self.link.as_ref().filter(|_| self.fault.is_none()).ok_or(Refused::Unlinked)?;
        if place.epoch != self.epoch {
            return Err(Refused::Unlinked);
        }
        let most = link.longest().min(place.len());
        if !(ETHERNET_HEADER..=most).contains(&size) {
            return Err(Refused::Size { size, most });
        }
        // Others' slots may have gone since the place was taken.
        let slots = size.div_ceil(PAGE_SIZE).saturating_add(offload.extras());
        if (link.tx.ring.free() as usize) < slots {
            return Err(Refused::Full);
        }
        if let Some(gso) = offload.gso {
            let taken = match gso.protocol() {
                Some(GsoProtocol::TcpV4) => link.sends.gso_tcpv4,
                Some(GsoProtocol::TcpV6) => link.sends.gso_tcpv6,
                _ => false,
            };
            if !taken || gso.size == 0 || link.front(place).tagged {
                return Err(Refused::Segment);
            }
            offload.checksum = Checksum::Blank;
            return Ok(());
        }
        if offload.checksum != Checksum::Blank {
            return Ok(());
        }
        let Front { ipv6, tagged } = link.front(place);
        let taken = if ipv6 { link.sends.checksum_v6 } else { link.sends.checksum_v4 };
        if taken && !tagged {
            return Ok(());
        }
        // A copy that the backend does not reach: its headers are followed.
        let mut packet: Vec<u8> = core::mem::take(&mut self.scratch);
        packet.resize(size, 0);
        link.copy_out(place, &mut packet);
        let found = transport::Checksum::find(&packet);
        if let Ok(checksum) = &found {
            checksum.complete(&mut packet);
            self.write(place, &[&packet]);
            offload.checksum = Checksum::Validated;
        }
        self.scratch = packet;
        found.map(|_| ()).map_err(|_| Refused::Checksum)
    }

    /// Asks the backend to let packets to a multicast address through, or not any more.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn multicast(&mut self, change: Multicast) -> Result<(), Refused> {
        if !self.multicast_control {
            return Err(Refused::Multicast);
        }
        if self.link.as_ref().is_some_and(|link| link.tx.ring.free() < 2) {
            self.reap();
        }
        let link = self.link.as_mut().filter(|_| self.fault.is_none()).ok_or(Refused::Unlinked)?;
        if link.tx.ring.free() < 2 {
            return Err(Refused::Full);
        }
        let id = link.shadow.ask(None).ok_or(Refused::Full)?;
        for slot in multicast(id, change) {
            let pushed = link.tx.ring.push(&slot);
            debug_assert!(pushed.is_ok(), "there were two slots");
        }
        link.shadow.ask_extras(1);
        Ok(())
    }

    /// Takes what was answered, and frees its pages. What the backend did wrong ends the queue; see
    /// [`fault`](Self::fault).
    pub fn reap(&mut self) {
        if let Err(fault) = self.reap_or_fault() {
            self.break_off(fault);
        }
    }

    fn reap_or_fault(&mut self) -> Result<(), PeerFault> {
        let Some(link) = self.link.as_mut().filter(|_| self.fault.is_none()) else {
            return Ok(());
        };
        loop {
            let response = match link.tx.ring.take_response() {
                Ok(Some(response)) => response,
                Ok(None) => return Ok(()),
                Err(fault) => return Err(fault.by(link.peer)),
            };
            let wrong = |what: &'static str| PeerFault::new(link.peer, what, response.id);
            let answered = match response.status {
                Status::NULL => link.shadow.answered_extra().map(|()| None),
                _ => link.shadow.answered(response.id),
            };
            match answered {
                Ok(Some(page)) => link.tx.pool.give(page),
                Ok(None) => {}
                Err(Lie::Id) => return Err(wrong("response to no request")),
                Err(Lie::Extra) => return Err(wrong("response to no extra")),
            }
            match response.status {
                Status::OKAY | Status::NULL => {}
                Status::ERROR => self.counters.failed = self.counters.failed.wrapping_add(1),
                Status::DROPPED => self.counters.dropped = self.counters.dropped.wrapping_add(1),
                status => {
                    let what = "response with unknown status";
                    return Err(PeerFault::new(link.peer, what, status));
                }
            }
        }
    }
}

impl<H: Granting + Events> Link<H> {
    fn longest(&self) -> usize {
        if self.sends.sg { MAX_TX_SIZE } else { PAGE_SIZE }
    }

    /// What the Ethernet header in a place says. The backend may change that under our eyes, and then
    /// cheats nobody but itself.
    fn front(&self, place: &Place) -> Front {
        let mut header = [0; ETHERNET_HEADER];
        self.copy_out(place, &mut header);
        let [.., a, b] = header;
        Front { ipv6: [a, b] == IPV6, tagged: Headers::are_tagged(&header) }
    }

    /// Copies the beginning of what is in a place out.
    fn copy_out(&self, place: &Place, into: &mut [u8]) {
        let mut rest = into;
        for (at, len) in place.runs() {
            let Some((now, later)) = rest.split_at_mut_checked(rest.len().min(len)) else { return };
            let copied = self.tx.pool.memory().read_at(at, now);
            debug_assert_eq!(copied, Ok(()), "the pool's pages lie inside the pool");
            rest = later;
        }
    }
}
