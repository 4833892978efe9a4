//! One queue: the loop that drives the stages, on a thread of its own.
//!
//! ```text
//!        +-> take, gather, check, hold back, reach    (at most BATCH requests)
//!        |   copy in, submit, kick the engine once; what was done meanwhile is shown at times
//!        |   collect what is finished, begin next steps
//!        |   copy out, release, answer, publish once, notify if the guest wants it
//!        +-- again while there is something to do, and a while longer where that has paid
//!            else: arm the ring's event, look once more, unmask the channel, sleep in the engine
//! ```
//!
//! Whatever the guest does, one round does a bounded amount of work, nothing is allocated for
//! a request, and what is held here is bounded by the ring's own slots.

mod admit;
mod control;
mod stall;
mod start;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use hypervisor::backend::Clock;
use hypervisor::event::Channel;
use hypervisor::{HostError, PeerFault};
use ring::{Listener, Polling, Waiting};

pub use control::{Command, Control, Ended, Serving};
use stall::Stalled;
pub use stall::{OnError, Stalls};
pub use start::{Handle, MachineParts, Parts, spawn, spawn_for_machine};

use crate::acquire::{GuestMemory, InFlight};
use crate::complete::complete;
use crate::durability::Order;
use crate::engine::{Engine, Finished as Moved};
use crate::notify::notify;
use crate::receive::Requests;
use crate::release::{Bodies, release};
use crate::request::{Finished, Ready, Request};
use crate::respond;
use crate::stats::Stats;
use crate::submit::Submit;
use crate::validate::Action;

/// Requests that are begun in one round at most.
const BATCH: usize = 64;
/// Requests done while they were begun, after which the guest is told of them at once. It wakes up, and asks for
/// more, while the rest of the round is done.
const SHOWN: usize = 8;

/// Everything that serves one queue of one connection.
pub struct Queue<R, G, E, C>
where
    R: Requests,
    G: GuestMemory<Place = R::Place>,
{
    requests: R,
    memory: G,
    engine: E,
    channel: C,
    serving: Arc<Serving>,
    control: Arc<Control>,
    stats: Arc<Stats>,

    bodies: Bodies<G::Hold, R::Place>,
    order: Order,
    /// What has to wait before it may begin, in order.
    held: VecDeque<Request<R::Slot, G::Hold, R::Place>>,
    /// When the first of them is worth another try, where time is what it waits for.
    held_until: Option<u64>,
    staged: VecDeque<Ready<R::Slot, G::Hold, R::Place>>,
    submit: Submit<R::Slot, G::Hold, R::Place>,
    stalled: Stalled<R::Slot, G::Hold, R::Place>,
    moved: Vec<Moved<InFlight<G::Hold, R::Place>>>,
    finished: Vec<Finished<R::Slot, G::Hold, R::Place>>,
    /// Answers were written that the guest was not shown.
    unpublished: bool,

    polling: Polling,
    listener: Listener,
    empty_looks: u32,
    slept: bool,
    last_work_ns: u64,
    clock: Clock,
}

/// Why the loop ends before it was told to.
enum Broken {
    Peer(PeerFault),
    Host(HostError),
}

impl From<PeerFault> for Broken {
    fn from(fault: PeerFault) -> Self {
        Self::Peer(fault)
    }
}

impl From<HostError> for Broken {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

impl<R, G, E, C> Queue<R, G, E, C>
where
    R: Requests,
    G: GuestMemory<Place = R::Place>,
    E: Engine<InFlight<G::Hold, R::Place>>,
    C: Channel + AsFd,
{
    /// A queue that takes from `requests`, with the guest's bytes in `memory`, over `engine`.
    pub fn new(
        (requests, memory, engine, channel): (R, G, E, C),
        serving: Arc<Serving>,
        control: Arc<Control>,
        stats: Arc<Stats>,
    ) -> Self {
        let slots = usize::try_from(requests.slots()).unwrap_or(BATCH);
        let clock = Clock::new();
        Self {
            bodies: Bodies::new(slots),
            order: Order::default(),
            held: VecDeque::with_capacity(slots),
            held_until: None,
            staged: VecDeque::with_capacity(BATCH),
            submit: Submit::default(),
            stalled: Stalled::default(),
            moved: Vec::with_capacity(slots),
            finished: Vec::with_capacity(slots),
            unpublished: false,
            polling: serving.waiting.polling(),
            listener: Listener::default(),
            empty_looks: 0,
            slept: false,
            last_work_ns: clock.recent(),
            clock,
            requests,
            memory,
            engine,
            channel,
            serving,
            control,
            stats,
        }
    }

    /// Serves until told otherwise, or until something breaks.
    pub fn run(mut self) -> Ended {
        // A panic is a defect of ours, but one device's: its guest is answered, whoever waits for
        // this end is told, and the other devices go on.
        let ended = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(ended)) => ended,
            Ok(Err(Broken::Peer(fault))) => Ended::Fault(fault),
            Ok(Err(Broken::Host(error))) => Ended::Failed(error),
            Err(_) => Ended::Failed(HostError::new("serve a queue: it panicked", libc::EIO)),
        };
        self.end(&ended);
        ended
    }

    fn serve(&mut self) -> Result<Ended, Broken> {
        loop {
            let command = self.control.command();
            let worked = self.round(command)?;
            match command {
                Command::Drain if self.is_empty() => return Ok(Ended::Drained),
                Command::Stop => return Ok(Ended::Stopped),
                _ => {}
            }
            if worked {
                self.worked();
                self.clock.pass();
            } else if command == Command::Run && self.look_again() {
                self.look_later();
                self.clock.pass();
            } else {
                self.sleep(command)?;
            }
        }
    }

    /// Once through all stages. Says whether there was something to do.
    #[inline]
    fn round(&mut self, command: Command) -> Result<bool, Broken> {
        self.submit.retry(&mut self.engine);
        let again = self.unstall(command)?;
        // A fault is acted on after what came before it was served.
        let (began, fault) = self.admit(command);
        if began {
            self.settle();
            let staged = self.staged.iter_mut();
            let from_guest = staged.filter(|ready| ready.job.action != Action::Read);
            self.memory.copy_in(from_guest.map(|ready| &mut *ready.body));
            while let Some(ready) = self.staged.pop_front() {
                match ready.body.failed {
                    None => self.submit.begin(&mut self.engine, ready),
                    Some(failed) => {
                        let Ready { job, body } = ready;
                        self.order.over(job.action, job.len > 0);
                        self.refuse(job, body, failed);
                    }
                }
                if self.engine.done_at_once() >= SHOWN {
                    self.collect()?;
                    self.publish()?;
                }
            }
            self.engine.kick()?;
        }
        let ended = self.collect()?;
        self.publish()?;
        match fault {
            Some(fault) => Err(fault.into()),
            None => Ok(began || ended || again),
        }
    }

    /// Shows the guest its answers.
    #[inline]
    fn publish(&mut self) -> Result<(), HostError> {
        if !std::mem::take(&mut self.unpublished) {
            return Ok(());
        }
        let wanted = self.requests.publish();
        notify(&self.channel, wanted, &self.stats)
    }

    /// Takes what the engine has finished as far as its answers.
    #[inline]
    fn collect(&mut self) -> Result<bool, Broken> {
        self.engine.finished(&mut self.moved)?;
        if self.moved.is_empty() {
            return Ok(false);
        }
        let now = self.clock.now();
        for moved in self.moved.drain(..) {
            let standing = &self.serving.standing;
            let done = complete(moved, &mut self.submit, &mut self.engine, standing);
            self.finished.extend(done);
        }
        if self.serving.on_error != OnError::Report {
            self.stall();
        }
        if let Some(errno) = self.serving.standing.lost() {
            self.requests.lose(errno);
        }
        release(&mut self.memory, &mut self.finished);
        for done in self.finished.drain(..) {
            let refusal = respond::copy_failed(&done);
            let Finished { job, body, result } = done;
            self.bodies.put(body);
            self.order.over(job.action, job.len > 0);
            match refusal {
                Some(refusal) => respond::refused(&mut self.requests, &self.stats, job, refusal),
                None => respond::finished(&mut self.requests, &self.stats, job, result, now),
            }
            self.unpublished = true;
        }
        Ok(true)
    }

    #[inline]
    fn settle(&mut self) {
        if self.memory.unsettled() {
            let engine = &mut self.engine;
            self.memory.settle(|slot, base, len| engine.register(slot, base, len));
        }
    }

    fn worked(&mut self) {
        let now = self.clock.recent();
        self.polling.busy(now);
        self.empty_looks = 0;
        self.last_work_ns = now;
        self.stats.turns.add(1);
        if !std::mem::take(&mut self.slept) {
            self.stats.polls_paid.add(1);
        }
        self.count_now();
    }

    fn count_now(&self) {
        let waiting = self.held.len().saturating_add(self.stalled.len());
        let flying = self.submit.table.len().saturating_add(waiting);
        self.stats.in_flight.set(u64::try_from(flying).unwrap_or(u64::MAX));
        self.stats.mapped_pages.set(u64::try_from(self.memory.kept()).unwrap_or(u64::MAX));
        let (taken, answered) = self.requests.indexes();
        self.stats.taken.set(u64::from(taken));
        self.stats.answered.set(u64::from(answered));
    }

    fn look_again(&mut self) -> bool {
        // Who does not look at all need not know for how long.
        let looks = self.polling.window() > 0;
        let now = if looks { self.clock.now() } else { self.clock.recent() };
        self.polling.look_again(now)
    }

    fn look_later(&mut self) {
        self.empty_looks = self.empty_looks.wrapping_add(1);
        if self.empty_looks.is_multiple_of(Waiting::LOOKS_PER_YIELD) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Sleeps until there is something to do, or to look at.
    fn sleep(&mut self, command: Command) -> Result<(), Broken> {
        let now = self.clock.recent();
        let mut until = self.held_until;
        let mut sooner = |at: u64| until = Some(until.map_or(at, |until| until.min(at)));
        if !self.stalled.is_empty() {
            sooner(self.stalled.until);
        }
        if self.memory.holds_back() {
            let idle = u64::try_from(self.serving.idle.as_nanos()).unwrap_or(u64::MAX);
            if self.last_work_ns.saturating_add(idle) <= now {
                self.memory.idle();
                self.settle();
                self.last_work_ns = now;
                self.count_now();
            }
            sooner(self.last_work_ns.saturating_add(idle));
        }
        if command == Command::Run && !self.submit.is_backed_up() {
            if self.requests.rearm()?.is_more() {
                self.clock.pass();
                return Ok(());
            }
            match self.listener.pause(&self.stats.empty_events, &self.stats.storms) {
                Some(ns) => sooner(now.saturating_add(ns)),
                None => self.channel.unmask(),
            }
        }
        self.stats.sleeps.add(1);
        self.slept = true;
        let timeout = until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
        let woken = {
            let watched = [self.channel.as_fd(), self.control.fd()];
            self.engine.wait(&watched, timeout)?
        };
        if woken.watched {
            self.control.heard();
            if self.channel.take() {
                self.listener.rang(&self.stats.events);
            }
        }
        self.clock.renew();
        self.polling.woken(self.clock.recent());
        Ok(())
    }

    /// Whether everything that was taken is answered.
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.stalled.is_empty() && self.submit.table.is_empty()
    }

    /// Gives everything up that is left. The engine goes first: it waits for what the medium is doing
    /// with the guest's pages, and only then may the guest be told anything about them.
    fn end(mut self, ended: &Ended) {
        let Self { mut requests, engine, channel, stats, mut submit, moved, clock, .. } = self;
        clock.pass();
        submit.clear_backlog();
        drop((engine, moved));
        let stalled = self.stalled.take();
        self.serving.stalls.gone(stalled.len());
        let stalled = stalled.into_iter().map(|ready| ready.job);
        let held = self.held.into_iter().map(|request| request.job);
        let staged = self.staged.into_iter().map(|ready| ready.job);
        let finished = self.finished.into_iter().map(|done| done.job);
        let pending = submit.table.drain().map(|pending| pending.job);
        for job in held.chain(stalled).chain(staged).chain(finished).chain(pending) {
            match ended {
                Ended::Failed(_) => {
                    let result = Err(libc::EIO);
                    respond::finished(&mut requests, &stats, job, result, clock.now());
                }
                _ => requests.abandon(job.slot),
            }
        }
        if matches!(ended, Ended::Failed(_)) {
            // Where not even that can be done, the device's end tells the guest.
            let _ = notify(&channel, requests.publish(), &stats);
        }
        stats.in_flight.set(0);
        stats.mapped_pages.set(0);
    }
}
