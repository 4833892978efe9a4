//! Takes packets from the port and makes them such as the guest takes.
//!
//! The first stage; after it: `post`. A packet that the guest does not want, or does not take in any
//! form, is lost here. What waits for the guest is bounded, in packets and in bytes, by how much is
//! asked of the port, which then keeps the rest or loses it; and in time, by `post` (advisory 392).
//!
//! Trust: packets come from the host or from other guests; what the port says of them is checked.

use std::collections::VecDeque;

use ring::packet::Headers;
use ring::packet::flow::Flow;
use ring::wire::netif::chain::Offload;
use ring::wire::netif::fit::{Fit, Takes};

use crate::buffer::{Buffer, Pool};
use crate::connect::Features;
use crate::offload::{Inbound, LEAST_SEGMENT, from_port};
use crate::queue::Serving;
use crate::segment::cut;
use crate::stats::{Loss, Stats};

/// A packet that waits for pages.
#[derive(Debug)]
pub struct Waiting {
    /// It.
    pub buffer: Buffer,
    /// How it lies in pages.
    pub fit: Fit,
    /// Whether it is to be cut into segments by the guest.
    pub gso: bool,
    /// Since when, in nanoseconds.
    pub since: u64,
}

/// What is cut here becomes as many packets as 64 KiB have segments of a usual size.
const SEGMENTS: usize = 48;
/// Packets after one that was cut, for which another is expected.
const CUT_AGAIN: u16 = 1024;

/// What came for the guest.
#[derive(Debug)]
pub struct Take {
    features: Features,
    waiting: VecDeque<Waiting>,
    /// Of all that wait.
    bytes: usize,
    /// For how many more packets room is left as if they were to be cut.
    cutting: u16,
}

impl Take {
    /// For a guest with these features.
    #[must_use]
    pub fn new(features: Features, most: usize) -> Self {
        Self { features, waiting: VecDeque::with_capacity(most), bytes: 0, cutting: 0 }
    }

    /// How many packets to ask the port for.
    #[inline]
    #[must_use]
    pub fn room(&self, serving: &Serving, pool: &Pool) -> usize {
        if self.bytes >= serving.rx.bytes {
            return 0;
        }
        let spare = pool.available().saturating_sub(crate::tx::BATCH);
        let free = serving.rx.packets.saturating_sub(self.waiting.len()).min(spare);
        let Takes { gso_tcpv4, gso_tcpv6, .. } = self.features.takes;
        let whole = gso_tcpv4 && gso_tcpv6 && self.cutting == 0;
        if whole { free } else { free.div_ceil(SEGMENTS) }
    }

    /// Takes a packet that came.
    #[inline]
    pub fn push(
        &mut self,
        mut buffer: Buffer,
        serving: &Serving,
        pool: &mut Pool,
        stats: &Stats,
        now: u64,
    ) {
        if !serving.groups.wants(buffer.packet()) {
            stats.rx_unlisted.add(1);
            return pool.put(buffer);
        }
        let inbound = from_port(&mut buffer, &self.features.takes, self.features.sums);
        match inbound.map(|inbound| self.fitting(inbound, buffer.len(), serving)) {
            Ok(Inbound::Whole(offload, summed)) => {
                self.cutting = self.cutting.saturating_sub(1);
                stats.rx_summed.add(u64::from(summed));
                self.keep(buffer, offload, serving, pool, stats, now);
            }
            Ok(Inbound::Cut(size)) => {
                self.cutting = CUT_AGAIN;
                stats.rx_cut.add(1);
                let mut segments = Vec::new();
                let spare = (&mut *pool, crate::tx::BATCH);
                if let Err(why) = cut(&buffer, size, spare, |segment| segments.push(segment)) {
                    stats.lose(why, 1);
                }
                pool.put(buffer);
                for segment in segments {
                    self.keep_segment(segment, serving, pool, stats, now);
                }
            }
            Err(why) => {
                stats.lose(why, 1);
                pool.put(buffer);
            }
        }
    }

    /// Has a packet cut here that the guest would cut, but has no room for: headroom takes some of
    /// every page.
    #[inline]
    fn fitting(&self, inbound: Inbound, len: usize, serving: &Serving) -> Inbound {
        match inbound {
            Inbound::Whole(Offload { gso: Some(gso), .. }, _)
                if gso.size >= LEAST_SEGMENT && !Fit::has_room(len, &self.takes(serving)) =>
            {
                Inbound::Cut(gso.size)
            }
            inbound => inbound,
        }
    }

    /// What the guest takes, now.
    #[inline]
    fn takes(&self, serving: &Serving) -> Takes {
        let mut takes = self.features.takes;
        takes.headroom = serving.headroom().unwrap_or(takes.headroom);
        takes
    }

    fn keep_segment(
        &mut self,
        mut segment: Buffer,
        serving: &Serving,
        pool: &mut Pool,
        stats: &Stats,
        now: u64,
    ) {
        match from_port(&mut segment, &self.features.takes, self.features.sums) {
            Ok(Inbound::Whole(offload, summed)) => {
                stats.rx_summed.add(u64::from(summed));
                self.keep(segment, offload, serving, pool, stats, now);
            }
            // A segment is not to be cut again.
            Ok(Inbound::Cut(_)) | Err(_) => {
                stats.lose(Loss::PortHeader, 1);
                pool.put(segment);
            }
        }
    }

    #[inline]
    fn keep(
        &mut self,
        buffer: Buffer,
        mut offload: Offload,
        serving: &Serving,
        pool: &mut Pool,
        stats: &Stats,
        now: u64,
    ) {
        let mut takes = self.takes(serving);
        if let Some(steering) = serving.steering() {
            takes.hash = true;
            let headers = Headers::find(buffer.packet()).ok();
            let flow = headers.and_then(|headers| Flow::of(buffer.packet(), &headers));
            offload.hash = flow.and_then(|flow| steering.hash(&flow));
        }
        match Fit::new(buffer.len(), offload, &takes) {
            Ok(fit) => {
                self.bytes = self.bytes.saturating_add(buffer.len());
                let gso = offload.gso.is_some();
                self.waiting.push_back(Waiting { buffer, fit, gso, since: now });
            }
            Err(_) => {
                stats.lose(Loss::Unfit, 1);
                pool.put(buffer);
            }
        }
    }

    /// The packet that has waited longest.
    #[inline]
    #[must_use]
    pub fn first(&self) -> Option<&Waiting> {
        self.waiting.front()
    }

    /// Takes it out.
    #[inline]
    pub fn pop(&mut self) -> Option<Waiting> {
        let first = self.waiting.pop_front()?;
        self.bytes = self.bytes.saturating_sub(first.buffer.len());
        Some(first)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Sources;
    use crate::offload::Sums;
    use crate::vnet::{Header, flags, gso};

    /// UDP over IPv4 with 100 bytes of payload.
    fn udp() -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend([0x45, 0, 0, 128, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0, 1, 0, 2, 0, 108, 0, 0]);
        bytes.extend([7; 100]);
        bytes
    }

    #[test]
    fn what_has_no_room_beside_headroom_is_cut() {
        // Linux's frontend takes 17 pages of a packet, and from each 256 bytes for a program of its own.
        for (headroom, len, came) in
            [(0, 65_549, 1), (256, 65_280, 1), (256, 65_281, 46), (256, 65_549, 46)]
        {
            let mut takes = Takes::default();
            (takes.sg, takes.gso_tcpv4, takes.gso_tcpv6) = (true, true, true);
            let features = Features::new(takes, Sums { v4: true, v6: true });
            let (serving, stats) = (Serving::new(1, Sources::default()), Stats::default());
            serving.set_headroom(headroom);
            let mut pool = Pool::new(256);
            let mut take = Take::new(features, 256);
            let header = Header {
                flags: flags::NEEDS_CSUM,
                gso_type: gso::TCPV4,
                gso_size: 1448,
                csum_start: 34,
                csum_offset: 16,
                ..Header::default()
            };
            let mut packet = udp();
            (packet[23], packet[46]) = (6, 0x50);
            packet.resize(len, 7);
            let mut buffer = pool.take().unwrap();
            buffer.fill(&header, &packet);
            take.push(buffer, &serving, &mut pool, &stats, 0);
            assert_eq!(take.len(), came, "{len} bytes beside {headroom}");
            while let Some(waiting) = take.pop() {
                let extras = 1 + usize::from(headroom > 0);
                assert!(waiting.fit.slots() <= 17 + extras, "{} slots", waiting.fit.slots());
            }
            assert_eq!(stats.snapshot().lost.len(), 0);
        }
    }

    #[test]
    fn what_is_cut_finds_room_for_its_segments_for_a_while() {
        let mut takes = Takes::default();
        (takes.sg, takes.gso_tcpv4, takes.gso_tcpv6) = (true, true, true);
        let features = Features::new(takes, Sums { v4: true, v6: true });
        let (serving, stats) = (Serving::new(1, Sources::default()), Stats::default());
        let most = serving.rx.packets;
        let mut pool = Pool::new(most + crate::tx::BATCH);
        let mut take = Take::new(features, most);
        assert_eq!(take.room(&serving, &pool), most);
        let large = Header {
            flags: flags::NEEDS_CSUM,
            gso_type: gso::UDP_L4,
            gso_size: 50,
            csum_start: 34,
            csum_offset: 6,
            ..Header::default()
        };
        let mut push = |take: &mut Take, header: &Header| {
            let mut buffer = pool.take().unwrap();
            buffer.fill(header, &udp());
            take.push(buffer, &serving, &mut pool, &stats, 0);
            let came = take.len();
            while let Some(waiting) = take.pop() {
                pool.put(waiting.buffer);
            }
            (came, take.room(&serving, &pool))
        };
        assert_eq!(push(&mut take, &large), (2, most.div_ceil(SEGMENTS)));
        for _ in 1..CUT_AGAIN {
            assert_eq!(push(&mut take, &Header::default()), (1, most.div_ceil(SEGMENTS)));
        }
        assert_eq!(push(&mut take, &Header::default()), (1, most));
    }
}
