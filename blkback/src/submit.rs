//! Hands requests to the engine, one step of each at a time.
//!
//! Before: `acquire`. After: the engine, then `complete`. What the engine has no room for waits here in
//! order; meanwhile the queue takes nothing more off its ring, so the guest's own ring is what bounds
//! the backlog. Units: bytes.

use std::collections::VecDeque;

use hypervisor::memory::Memory;

use crate::acquire::InFlight;
use crate::durability::{Plan, Step};
use crate::engine::{Engine, Operation};
use crate::request::{Job, Ready};
use crate::segments::Body;
use crate::validate::{Action, Checked};

/// Names a request in the [`Table`] while it is in flight.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u32);

/// A request that is in flight: what it is, and what is yet to be done for it.
#[derive(Debug)]
pub struct Pending<S> {
    /// What it is.
    pub job: Job<S>,
    /// The steps after this one.
    pub plan: Plan,
    /// What the medium is doing for it.
    pub step: Step,
    /// With which part of the request: one after the other of the ranges that it names.
    pub part: Checked,
    /// How many such ranges are done.
    pub parts: usize,
}

impl<S> Pending<S> {
    /// The present step as the engine's operation.
    #[inline]
    #[must_use]
    pub fn operation(&self) -> Operation {
        let Checked { action, offset, len } = self.part;
        match (self.step, action) {
            (Step::Flush, _) => Operation::Flush,
            (Step::Transfer, Action::Read) => Operation::Read { offset },
            (Step::Transfer, Action::Discard { secure }) => {
                Operation::Discard { offset, len, secure }
            }
            (Step::Transfer, Action::Zero { unmap }) => Operation::Zero { offset, len, unmap },
            (Step::Transfer, _) => Operation::Write { offset },
        }
    }
}

/// The requests that are in flight.
#[derive(Debug)]
pub struct Table<S> {
    entries: Vec<Option<Pending<S>>>,
    free: Vec<u32>,
    used: usize,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), used: 0 }
    }
}

impl<S> Table<S> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Enters a request. There are never more than the ring has slots.
    #[inline]
    fn enter(&mut self, pending: Pending<S>) -> Ticket {
        self.used = self.used.saturating_add(1);
        if let Some(at) = self.free.pop()
            && let Some(entry) = usize::try_from(at).ok().and_then(|at| self.entries.get_mut(at))
        {
            *entry = Some(pending);
            return Ticket(at);
        }
        self.entries.push(Some(pending));
        Ticket(u32::try_from(self.entries.len().saturating_sub(1)).unwrap_or(u32::MAX))
    }

    /// The request that a ticket names.
    #[inline]
    pub fn get_mut(&mut self, ticket: &Ticket) -> Option<&mut Pending<S>> {
        self.entries.get_mut(usize::try_from(ticket.0).ok()?)?.as_mut()
    }

    /// Takes a request out.
    #[inline]
    pub fn leave(&mut self, ticket: Ticket) -> Option<Pending<S>> {
        let pending = self.entries.get_mut(usize::try_from(ticket.0).ok()?)?.take()?;
        self.free.push(ticket.0);
        self.used = self.used.saturating_sub(1);
        Some(pending)
    }

    /// Takes all of them out.
    pub fn drain(&mut self) -> impl Iterator<Item = Pending<S>> {
        self.free.clear();
        self.used = 0;
        self.entries.drain(..).flatten()
    }
}

/// The way into the engine.
#[derive(Debug)]
pub struct Submit<S, H, P> {
    /// What is in flight, and what waits to be.
    pub table: Table<S>,
    backlog: VecDeque<(Operation, InFlight<H, P>)>,
}

impl<S, H, P> Default for Submit<S, H, P> {
    fn default() -> Self {
        Self { table: Table::default(), backlog: VecDeque::new() }
    }
}

impl<S, H: Memory, P> Submit<S, H, P> {
    /// Begins the first step of a request.
    #[inline]
    pub fn begin<E: Engine<InFlight<H, P>>>(&mut self, engine: &mut E, ready: Ready<S, H, P>) {
        let Ready { job, body } = ready;
        let mut plan = Plan::of(job.action, job.len > 0);
        // Every plan has a first step.
        let step = plan.next().unwrap_or(Step::Flush);
        let whole = Checked { action: job.action, offset: job.offset, len: job.len };
        let part = body.ranges.first().copied().unwrap_or(whole);
        let pending = Pending { job, plan, step, part, parts: 0 };
        let operation = pending.operation();
        let ticket = self.table.enter(pending);
        self.hand(engine, operation, InFlight { ticket, body });
    }

    /// Begins another step of a request that is in the table.
    #[inline]
    pub fn go_on<E: Engine<InFlight<H, P>>>(
        &mut self,
        engine: &mut E,
        operation: Operation,
        ticket: Ticket,
        body: Box<Body<H, P>>,
    ) {
        self.hand(engine, operation, InFlight { ticket, body });
    }

    /// Tries again what the engine had no room for.
    #[inline]
    pub fn retry<E: Engine<InFlight<H, P>>>(&mut self, engine: &mut E) {
        while let Some((operation, held)) = self.backlog.pop_front() {
            if let Err(held) = engine.submit(operation, held) {
                self.backlog.push_front((operation, held));
                return;
            }
        }
    }

    /// Whether the engine has no room.
    #[inline]
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Forgets what waits, whose duties stay in the table.
    pub fn clear_backlog(&mut self) {
        self.backlog.clear();
    }

    #[inline]
    fn hand<E: Engine<InFlight<H, P>>>(
        &mut self,
        engine: &mut E,
        operation: Operation,
        held: InFlight<H, P>,
    ) {
        // What waits already goes first.
        let refused = match self.backlog.is_empty() {
            true => engine.submit(operation, held),
            false => Err(held),
        };
        if let Err(held) = refused {
            self.backlog.push_back((operation, held));
        }
    }
}
