//! Takes packets from the port and makes them such as the guest takes.
//!
//! The first stage; after it: a [`Sink`](super::Sink). A packet that the guest does not want, or does not take in
//! any form ([`Shape`]), is lost here. What waits for the guest is bounded, in packets and in bytes, by how much is
//! asked of the port, which then keeps the rest or loses it; and in time, by `patience` (advisory 392).
//!
//! Trust: packets come from the host or from other guests; what the port says of them is checked.

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::buffer::{Buffer, Pool};
use crate::queue::Serving;
use crate::segment::cut;
use crate::stats::{Loss, Stats};

/// What a guest takes.
pub trait Shape: Debug {
    /// How a packet is to lie in the guest's memory.
    type Fit: Copy + Debug;

    /// What becomes of the packet in `buffer`, which came from the port.
    ///
    /// # Errors
    ///
    /// The guest does not take it in any form, or it makes no sense.
    fn fit(&self, buffer: &mut Buffer) -> Result<Fitted<Self::Fit>, Loss>;

    /// Whether it takes large packets of most kinds in one piece.
    fn is_whole(&self) -> bool;
}

/// What becomes of a packet for a guest.
#[derive(Clone, Copy, Debug)]
pub enum Fitted<F> {
    /// It goes as it is.
    Whole {
        /// How it lies in the guest's memory.
        fit: F,
        /// Whether the guest is to cut it into segments.
        gso: bool,
        /// Whether its checksum was completed here.
        summed: bool,
    },
    /// It is to be cut into segments of that much payload first.
    Cut(u16),
}

/// A packet that waits for room in the guest's memory.
#[derive(Debug)]
pub struct Waiting<F> {
    /// It.
    pub buffer: Buffer,
    /// How it lies there.
    pub fit: F,
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
pub struct Take<S: Shape> {
    shape: S,
    waiting: VecDeque<Waiting<S::Fit>>,
    /// Of all that wait.
    bytes: usize,
    /// For how many more packets room is left as if they were to be cut.
    cutting: u16,
}

impl<S: Shape> Take<S> {
    /// For a guest that takes packets of that shape.
    #[must_use]
    pub fn new(shape: S, most: usize) -> Self {
        Self { shape, waiting: VecDeque::with_capacity(most), bytes: 0, cutting: 0 }
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
        let whole = self.shape.is_whole() && self.cutting == 0;
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
        match self.shape.fit(&mut buffer) {
            Ok(Fitted::Whole { fit, gso, summed }) => {
                self.cutting = self.cutting.saturating_sub(1);
                stats.rx_summed.add(u64::from(summed));
                self.keep(Waiting { buffer, fit, gso, since: now });
            }
            Ok(Fitted::Cut(size)) => {
                self.cutting = CUT_AGAIN;
                stats.rx_cut.add(1);
                let mut segments = Vec::new();
                let spare = (&mut *pool, crate::tx::BATCH);
                if let Err(why) = cut(&buffer, size, spare, |segment| segments.push(segment)) {
                    stats.lose(why, 1);
                }
                pool.put(buffer);
                for segment in segments {
                    self.keep_segment(segment, pool, stats, now);
                }
            }
            Err(why) => {
                stats.lose(why, 1);
                pool.put(buffer);
            }
        }
    }

    fn keep_segment(&mut self, mut segment: Buffer, pool: &mut Pool, stats: &Stats, now: u64) {
        let lost = match self.shape.fit(&mut segment) {
            Ok(Fitted::Whole { fit, gso, summed }) => {
                stats.rx_summed.add(u64::from(summed));
                return self.keep(Waiting { buffer: segment, fit, gso, since: now });
            }
            // A segment is not to be cut again.
            Ok(Fitted::Cut(_)) => Loss::PortHeader,
            Err(why) => why,
        };
        stats.lose(lost, 1);
        pool.put(segment);
    }

    #[inline]
    fn keep(&mut self, waiting: Waiting<S::Fit>) {
        self.bytes = self.bytes.saturating_add(waiting.buffer.len());
        self.waiting.push_back(waiting);
    }

    /// The packet that has waited longest.
    #[inline]
    #[must_use]
    pub fn first(&self) -> Option<&Waiting<S::Fit>> {
        self.waiting.front()
    }

    /// Takes it out.
    #[inline]
    pub fn pop(&mut self) -> Option<Waiting<S::Fit>> {
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
    use std::sync::Arc;

    use ring::wire::netif::fit::Takes;

    use super::*;
    use crate::connect::Features;
    use crate::filter::Sources;
    use crate::offload::Sums;
    use crate::rx::xen::Shape as Xen;
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
            let serving = Arc::new(serving);
            let mut take = Take::new(Xen::new(features, Arc::clone(&serving)), 256);
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
        let serving = Arc::new(serving);
        let mut pool = Pool::new(most + crate::tx::BATCH);
        let mut take = Take::new(Xen::new(features, Arc::clone(&serving)), most);
        assert_eq!(take.room(&serving, &pool), most);
        let large = Header {
            flags: flags::NEEDS_CSUM,
            gso_type: gso::UDP_L4,
            gso_size: 50,
            csum_start: 34,
            csum_offset: 6,
            ..Header::default()
        };
        let mut push = |take: &mut Take<Xen>, header: &Header| {
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
