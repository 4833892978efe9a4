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
use crate::offload::{Inbound, from_port};
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

/// What came for the guest.
#[derive(Debug)]
pub struct Take {
    features: Features,
    waiting: VecDeque<Waiting>,
    /// Of all that wait.
    bytes: usize,
}

impl Take {
    /// For a guest with these features.
    #[must_use]
    pub fn new(features: Features, most: usize) -> Self {
        Self { features, waiting: VecDeque::with_capacity(most), bytes: 0 }
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
        // What is cut here becomes as many packets as 64 KiB have segments of a usual size.
        if gso_tcpv4 && gso_tcpv6 { free } else { free.div_ceil(48) }
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
        match from_port(&mut buffer, &self.features.takes, self.features.sums) {
            Ok(Inbound::Whole(offload, summed)) => {
                stats.rx_summed.add(u64::from(summed));
                self.keep(buffer, offload, serving, pool, stats, now);
            }
            Ok(Inbound::Cut(size)) => {
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
        let mut takes = self.features.takes;
        takes.headroom = serving.headroom().unwrap_or(takes.headroom);
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
