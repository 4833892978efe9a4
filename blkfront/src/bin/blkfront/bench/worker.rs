//! One thread with one queue, keeping as many requests under way as it was told to.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use blkfront::arena::Arena;
use blkfront::buffer::Either;
use blkfront::host::{HostBuffer, HostQueue};
use blkfront::{Completion, Operation, Private, Request};
use hdrhistogram::Histogram;
use hypervisor::frontend::host::Stop;
use hypervisor::host::Domain;
use hypervisor::memory::Granting;

use crate::args::Bench;
use crate::bench::Progress;
use crate::bench::plan::{Next, Plan};
use crate::pattern;

type Buffer<D> = HostBuffer<D>;
type Lending<D> = Arena<<D as Granting>::Memory>;

/// How often the progress line is told, and the clock asked whether to end.
const TELL: u64 = 1024;

/// What a worker measured.
pub(crate) struct Outcome {
    /// Nanoseconds from submission to completion.
    pub(crate) latency: Histogram<u64>,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) verified: u64,
    /// For how long requests were made.
    pub(crate) took: Duration,
    /// Whether it was ended early.
    pub(crate) stopped: bool,
}

impl Outcome {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)
            .map_err(|error| anyhow!("make a histogram: {error}"))?;
        Ok(Self {
            latency,
            requests: 0,
            bytes: 0,
            errors: 0,
            verified: 0,
            took: Duration::ZERO,
            stopped: false,
        })
    }

    pub(crate) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.latency.add(&other.latency).map_err(|error| anyhow!("add histograms: {error}"))?;
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.errors = self.errors.saturating_add(other.errors);
        self.verified = self.verified.saturating_add(other.verified);
        self.took = self.took.max(other.took);
        self.stopped |= other.stopped;
        Ok(())
    }
}

/// What is known of a request under way, by its tag.
#[derive(Clone, Copy)]
struct Flight {
    began: Instant,
    generation: u32,
}

pub(crate) struct Worker<D: Domain> {
    queue: HostQueue<D>,
    plan: Plan,
    depth: usize,
    block: usize,
    arena: Option<Lending<D>>,
    until: Instant,
    stop: Stop,
    flights: Vec<Flight>,
    /// Tags and memory of requests that are not under way.
    spare: Vec<(u64, Buffer<D>)>,
    scratch: Vec<u8>,
    wanted: Vec<u8>,
}

impl<D: Domain> Worker<D> {
    pub(crate) fn new(
        mut queue: HostQueue<D>,
        plan: Plan,
        options: &Bench,
        arena: Option<Lending<D>>,
        until: Instant,
        stop: Stop,
    ) -> Self {
        if options.poll {
            queue.set_polling(u64::MAX);
        } else if options.no_poll {
            queue.set_polling(0);
        }
        let depth = options.depth as usize;
        let block = usize::try_from(options.bs.0).unwrap_or(usize::MAX);
        let began = Instant::now();
        Self {
            queue,
            plan,
            depth,
            block,
            arena,
            until,
            stop,
            flights: vec![Flight { began, generation: 0 }; depth],
            spare: Vec::with_capacity(depth),
            scratch: vec![0; block],
            wanted: Vec::new(),
        }
    }

    /// Makes requests until the time is over; then, where that was asked for, reads back what was
    /// written.
    pub(crate) fn run(
        mut self,
        progress: &Progress,
    ) -> anyhow::Result<(Outcome, Option<Lending<D>>)> {
        let mut outcome = Outcome::new()?;
        for number in 0..self.depth {
            let buffer = match &self.arena {
                Some(arena) => {
                    let at = number.saturating_mul(self.block);
                    Either::Lent(arena.part(at, self.block).context("the arena is too small")?)
                }
                None => Either::Private(Private::new(vec![0; self.block])),
            };
            self.spare.push((number as u64, buffer));
        }
        let began = Instant::now();
        let mut done = Vec::with_capacity(self.depth);
        let mut told = (0_u64, 0_u64);
        let mut more = true;
        loop {
            while more && !self.spare.is_empty() {
                let Some(next) = self.plan.next() else { break };
                self.submit(next)?;
            }
            if self.queue.held() == 0 {
                break;
            }
            self.queue.wait(&mut done, 1, None)?;
            let now = Instant::now();
            for completion in done.drain(..) {
                self.finish(completion, now, &mut outcome)?;
            }
            let new = outcome.requests.saturating_sub(told.0);
            if new >= TELL || now >= self.until {
                progress.requests.fetch_add(new, Ordering::Relaxed);
                progress.bytes.fetch_add(outcome.bytes.saturating_sub(told.1), Ordering::Relaxed);
                told = (outcome.requests, outcome.bytes);
            }
            more = now < self.until && !self.stop.asked();
        }
        outcome.took = began.elapsed();
        outcome.stopped = self.stop.asked();
        if self.plan.verifies() && !outcome.stopped {
            self.read_back(&mut outcome)?;
        }
        let Self { arena, spare, .. } = self;
        drop(spare);
        Ok((outcome, arena))
    }

    fn submit(&mut self, next: Next) -> anyhow::Result<()> {
        let Some((tag, mut buffer)) = self.spare.pop() else { return Ok(()) };
        let write = next.operation == Operation::Write;
        if write && self.plan.verifies() {
            match &mut buffer {
                Either::Private(private) => pattern::fill(private, next.offset, next.generation),
                Either::Lent(lent) => {
                    pattern::fill(&mut self.scratch, next.offset, next.generation);
                    lent.write(0, &self.scratch);
                }
            }
        }
        if let Some(flight) = usize::try_from(tag).ok().and_then(|tag| self.flights.get_mut(tag)) {
            *flight = Flight { began: Instant::now(), generation: next.generation };
        }
        let request = if write {
            Request::write(next.offset, buffer, tag)
        } else {
            Request::read(next.offset, buffer, tag)
        };
        self.queue.submit(request).map_err(|rejected| match self.queue.ending() {
            Some(ending) => anyhow!("{ending}"),
            None => anyhow!("byte {}: {}", next.offset, rejected.reason),
        })
    }

    fn finish(
        &mut self,
        completion: Completion<Buffer<D>>,
        now: Instant,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let Completion { request, result } = completion;
        let flight = usize::try_from(request.tag)
            .ok()
            .and_then(|tag| self.flights.get(tag))
            .copied()
            .context("a request came back that was not made")?;
        let took = now.saturating_duration_since(flight.began).as_nanos();
        outcome.latency.saturating_record(u64::try_from(took).unwrap_or(u64::MAX));
        outcome.requests = outcome.requests.saturating_add(1);
        outcome.bytes = outcome.bytes.saturating_add(self.block as u64);
        self.plan.done(request.offset);
        if result.is_err() {
            outcome.errors = outcome.errors.saturating_add(1);
            if let Some(ending) = self.queue.ending() {
                bail!("{ending}");
            }
        } else if request.operation == Operation::Read && flight.generation > 0 {
            self.check(&request.buffer, request.offset, flight.generation)?;
            outcome.verified = outcome.verified.saturating_add(1);
        }
        self.spare.push((request.tag, request.buffer));
        Ok(())
    }

    fn check(&mut self, buffer: &Buffer<D>, offset: u64, generation: u32) -> anyhow::Result<()> {
        let bytes = match buffer {
            Either::Private(private) => private.as_slice(),
            Either::Lent(lent) => {
                lent.read(0, &mut self.scratch);
                self.scratch.as_slice()
            }
        };
        match pattern::mismatch(bytes, offset, generation, &mut self.wanted) {
            None => Ok(()),
            Some(at) => bail!(
                "verification failed: byte {} of the disk is not what was written there",
                offset.saturating_add(at as u64)
            ),
        }
    }

    /// Reads every block that was written, and checks it.
    fn read_back(&mut self, outcome: &mut Outcome) -> anyhow::Result<()> {
        let mut left = self.plan.written().into_iter();
        let mut done = Vec::with_capacity(self.depth);
        let mut beside = Outcome::new()?;
        loop {
            while !self.spare.is_empty()
                && !self.stop.asked()
                && let Some(next) = left.next()
            {
                self.submit(next)?;
            }
            if self.queue.held() == 0 {
                outcome.verified = outcome.verified.saturating_add(beside.verified);
                outcome.errors = outcome.errors.saturating_add(beside.errors);
                return Ok(());
            }
            self.queue.wait(&mut done, 1, None)?;
            let now = Instant::now();
            for completion in done.drain(..) {
                self.finish(completion, now, &mut beside)?;
            }
        }
    }
}
