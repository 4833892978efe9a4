//! One thread with one queue.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use hdrhistogram::Histogram;
use hypervisor::frontend::host::Stop;
use hypervisor::host::Domain;
use netfront::host::HostQueue;
use netfront::{Offload, Refused};

use crate::args::{Bench, Mac, Mode};

/// The EtherType for local experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xB5];
/// Where a packet's number is.
const NUMBER: usize = 14;
/// Packets between two looks at the clock.
const BATCH: usize = 64;
/// After so long a packet that did not come back is lost.
const LOST: Duration = Duration::from_millis(500);
/// How long what was sent may take to be answered at the end.
const LAST: Duration = Duration::from_secs(2);

/// What a worker measured.
pub(crate) struct Outcome {
    /// Nanoseconds there and back.
    pub(crate) latency: Histogram<u64>,
    /// Packets sent, received, or back, by mode.
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Packets that did not come back.
    pub(crate) lost: u64,
    pub(crate) took: Duration,
    /// Whether it was ended early.
    pub(crate) stopped: bool,
}

impl Outcome {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)
            .map_err(|error| anyhow!("make a histogram: {error}"))?;
        let took = Duration::ZERO;
        Ok(Self { latency, packets: 0, bytes: 0, lost: 0, took, stopped: false })
    }

    pub(crate) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.latency.add(&other.latency).map_err(|error| anyhow!("add histograms: {error}"))?;
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.lost = self.lost.saturating_add(other.lost);
        self.took = self.took.max(other.took);
        self.stopped |= other.stopped;
        Ok(())
    }
}

pub(crate) struct Worker<D: Domain> {
    queue: HostQueue<D>,
    mode: Mode,
    packet: Vec<u8>,
    /// When each packet that is under way was sent, and its number; rr only.
    flights: Vec<Option<(Instant, u64)>>,
    number: u64,
    until: Instant,
    stop: Stop,
    outcome: Outcome,
}

impl<D: Domain> Worker<D> {
    pub(crate) fn new(
        mut queue: HostQueue<D>,
        options: &Bench,
        from: [u8; 6],
        until: Instant,
        stop: Stop,
    ) -> anyhow::Result<Self> {
        if options.poll {
            queue.set_polling(u64::MAX);
        } else if options.no_poll {
            queue.set_polling(0);
        }
        let Mac(to) = options.to;
        let mut packet: Vec<u8> = [&to[..], &from, &EXPERIMENT].concat();
        packet.resize(options.size as usize, 0);
        Ok(Self {
            queue,
            mode: options.mode,
            packet,
            flights: vec![None; options.depth as usize],
            number: 0,
            until,
            stop,
            outcome: Outcome::new()?,
        })
    }

    pub(crate) fn run(mut self) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        loop {
            if self.stop.asked() {
                self.outcome.stopped = true;
                break;
            }
            if Instant::now() >= self.until || self.queue.ending().is_some() {
                break;
            }
            let (worked, room) = match self.mode {
                Mode::Tx => self.send_many(),
                Mode::Rx => (self.receive_many(), false),
                Mode::Rr => self.exchange(),
            };
            if worked {
                self.queue.worked();
            } else {
                let soon = Instant::now().checked_add(LOST).unwrap_or(self.until);
                let deadline = Some(self.until.min(soon));
                self.queue.rest(room, &[self.stop.as_fd()], deadline)?;
            }
        }
        if self.mode == Mode::Tx {
            self.settle()?;
        }
        self.outcome.took = began.elapsed();
        if self.mode != Mode::Rx {
            self.outcome.bytes = self.outcome.packets.saturating_mul(self.packet.len() as u64);
        }
        Ok(self.outcome)
    }

    /// Says whether any packet was taken, and whether there was no room for more.
    fn send_many(&mut self) -> (bool, bool) {
        let packet = &self.packet;
        let sent = self.queue.with(|queue| {
            for count in 0..BATCH {
                match queue.send(&[packet], Offload::default()) {
                    Ok(()) => {}
                    Err(refused) => return (count, refused == Refused::Full),
                }
            }
            (BATCH, false)
        });
        let (count, full) = sent.unwrap_or_default();
        self.outcome.packets = self.outcome.packets.saturating_add(count as u64);
        (count > 0, full)
    }

    /// Waits for what was sent to be answered: until then it was not sent.
    fn settle(&mut self) -> anyhow::Result<()> {
        let end = Instant::now().checked_add(LAST);
        loop {
            let left = self.queue.with(|queue| {
                queue.reap();
                queue.in_flight()
            });
            if left.unwrap_or(0) == 0 || end.is_none_or(|end| Instant::now() >= end) {
                let left = left.unwrap_or(0) as u64;
                self.outcome.lost = left;
                self.outcome.packets = self.outcome.packets.saturating_sub(left);
                return Ok(());
            }
            self.queue.rest(true, &[], end)?;
        }
    }

    fn receive_many(&mut self) -> bool {
        let received = self.queue.with(|queue| {
            let (mut count, mut bytes) = (0_u64, 0_u64);
            for _ in 0..BATCH {
                let Some(received) = queue.receive() else { break };
                bytes = bytes.saturating_add(received.len() as u64);
                queue.release(received);
                count = count.saturating_add(1);
            }
            (count, bytes)
        });
        let (count, bytes) = received.unwrap_or_default();
        self.outcome.packets = self.outcome.packets.saturating_add(count);
        self.outcome.bytes = self.outcome.bytes.saturating_add(bytes);
        count > 0
    }

    /// Takes what came back, and keeps as many under way as it was told to.
    fn exchange(&mut self) -> (bool, bool) {
        let Self { queue, packet, flights, number, outcome, .. } = self;
        let worked = queue.with(|queue| {
            let (mut worked, mut full) = (false, false);
            let mut head = [0; NUMBER + 8];
            while let Some(received) = queue.receive() {
                let whole = queue.read(&received, 0, &mut head) == head.len();
                queue.release(received);
                worked = true;
                let Some(back) = numbered(&head).filter(|_| whole) else { continue };
                let now = Instant::now();
                let flight = flights
                    .iter_mut()
                    .find(|flight| flight.is_some_and(|(_, number)| number == back));
                if let Some((sent, _)) = flight.and_then(Option::take) {
                    let took = u64::try_from(now.duration_since(sent).as_nanos());
                    outcome.latency.saturating_record(took.unwrap_or(u64::MAX));
                    outcome.packets = outcome.packets.saturating_add(1);
                }
            }
            let now = Instant::now();
            for flight in flights.iter_mut() {
                if flight.is_some_and(|(sent, _)| now.duration_since(sent) > LOST) {
                    *flight = None;
                    outcome.lost = outcome.lost.saturating_add(1);
                }
                if flight.is_some() {
                    continue;
                }
                if let Some(room) = packet.get_mut(NUMBER..).and_then(|p| p.first_chunk_mut()) {
                    *room = number.to_be_bytes();
                }
                match queue.send(&[packet], Offload::default()) {
                    Ok(()) => {
                        *flight = Some((Instant::now(), *number));
                        *number = number.wrapping_add(1);
                        worked = true;
                    }
                    Err(refused) => {
                        full |= refused == Refused::Full;
                        break;
                    }
                }
            }
            (worked, full)
        });
        worked.unwrap_or_default()
    }
}

/// The number of a packet of ours that came back.
fn numbered(head: &[u8; NUMBER + 8]) -> Option<u64> {
    let kind = head.get(12..NUMBER)?;
    let number = head.get(NUMBER..)?.first_chunk()?;
    (kind == EXPERIMENT).then(|| u64::from_be_bytes(*number))
}
