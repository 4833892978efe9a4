//! One queue: the loop that drives both directions, on a thread of its own.
//!
//! ```text
//!        +-> tx: take, copy in, check, hand to the port, answer, notify
//!        |   the port's turn: sends all that, brings what came
//!        |   rx: take, fit, copy out, answer, notify
//!        +-- again while there is something to do, and a while longer where that has paid
//!            else: arm the rings' events, look once more, unmask the channels, sleep in the port
//! ```
//!
//! Whatever the guest or the network does, one round does a bounded amount of work, nothing is
//! allocated for a packet, and what is held here is bounded by the rings and by
//! [`Bounds`](crate::rx::Bounds).

mod control;
mod inbox;
mod rings;
mod start;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use hypervisor::backend::Clock;
use hypervisor::event::Channel;
use hypervisor::{HostError, PeerFault};
use ring::{Listener, Polling};

pub use control::{Control, Ended, Serving};
pub use inbox::Inbox;
pub use rings::ends_of_rings;
pub use start::{About, Handle, Parts, spawn, spawn_ends};

use crate::buffer::{Buffer, Pool};
use crate::connect::Channels;
use crate::notify::notify;
use crate::port::Port;
use crate::rx::steer::steer;
use crate::rx::{Rx, Sink};
use crate::stats::{Loss, Stats};
use crate::tx::{self, Source, Tx};

/// Empty looks between two offers of the processor to somebody else. A look at both directions takes longer
/// than one at a ring, and there are more who wait: both ends of a connection, and the guest.
const LOOKS_PER_YIELD: u32 = 32;

/// Empty looks between two at the clock.
const LOOKS_PER_TIME: u32 = 32;

/// Sleeps of which one is measured, while looking does not pay: the clock may cost as much as a packet.
const SLEEPS_PER_TIME: u32 = 8;

/// What the stages of a round have in common.
#[derive(Debug)]
pub struct Around<'a> {
    /// What the device's queues share.
    pub serving: &'a Serving,
    /// Where to count.
    pub stats: &'a Stats,
    /// When it is.
    pub clock: &'a Clock,
    /// Whether it has to be known exactly: there is a rate to keep.
    pub timed: bool,
}

impl Around<'_> {
    /// When it is, in nanoseconds: exactly where that is needed, else about.
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        if self.timed { self.clock.now() } else { self.clock.about() }
    }
}

/// Everything that serves one queue of one connection: what the guest sends comes from `T` and goes to `P`, what it
/// receives comes from `P` and goes to `K`, and over `C` the two ends tell each other.
#[derive(Debug)]
pub struct Queue<T: Source, K: Sink, C, P> {
    tx: Tx<T>,
    rx: Rx<K>,
    channels: Channels<C>,
    port: P,
    serving: Arc<Serving>,
    control: Arc<Control>,
    stats: Arc<Stats>,

    /// Which of the device's queues it is.
    number: u16,
    pool: Pool,
    /// What the port brought, between its turn and `rx`.
    arrived: VecDeque<Buffer>,
    /// Whether this queue is one that the guest posts nothing to.
    stalled: bool,

    polling: Polling,
    listener: Listener,
    empty_looks: u32,
    slept: bool,
    last_work_ns: u64,
    clock: Clock,
    /// Sleeps since one was measured.
    unmeasured: u32,
}

/// The guest's side of a queue.
#[derive(Debug)]
pub struct Ends<T, K, C> {
    /// Where the guest's packets come from.
    pub source: T,
    /// Where packets for it go.
    pub sink: K,
    /// Whether it tells when it makes room for them.
    pub tells: bool,
    /// What wakes us and it.
    pub channels: Channels<C>,
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

impl<T, K, C, P> Queue<T, K, C, P>
where
    T: Source,
    K: Sink,
    C: Channel + AsFd,
    P: Port,
{
    /// Queue `number`, between a guest's `ends` and a `port`.
    pub fn new(
        number: u16,
        ends: Ends<T, K, C>,
        port: P,
        serving: Arc<Serving>,
        control: Arc<Control>,
        stats: Arc<Stats>,
    ) -> Self {
        let Ends { source, sink, tells, channels } = ends;
        let most = serving.rx.packets.saturating_add(tx::BATCH);
        let clock = Clock::new();
        Self {
            tx: Tx::new(source),
            rx: Rx::new(sink, tells, &serving.rx),
            number,
            pool: Pool::new(most),
            arrived: VecDeque::with_capacity(serving.rx.packets),
            stalled: false,
            polling: serving.waiting.polling(),
            listener: Listener::default(),
            empty_looks: 0,
            slept: false,
            last_work_ns: clock.recent(),
            clock,
            unmeasured: 0,
            channels,
            port,
            serving,
            control,
            stats,
        }
    }

    /// Serves until told otherwise, or until something breaks.
    pub fn run(mut self) -> Ended {
        // A panic is a defect of ours, but one device's: whoever waits for this end is told, and the
        // other devices go on.
        let ended = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(ended)) => ended,
            Ok(Err(Broken::Peer(fault))) => Ended::Fault(fault),
            Ok(Err(Broken::Host(error))) => Ended::Failed(error),
            Err(_) => Ended::Failed(HostError::new("serve a queue: it panicked", libc::EIO)),
        };
        if self.stalled {
            // Whoever comes next finds the link as it is at first.
            self.serving.stall(false);
        }
        self.rx.clear(&mut self.pool);
        self.stats.rx_waiting.set(0);
        ended
    }

    fn serve(&mut self) -> Result<Ended, Broken> {
        loop {
            if self.control.is_stopped() {
                return Ok(Ended::Stopped);
            }
            self.clock.pass();
            if self.round()? {
                self.worked();
            } else if self.look_again() {
                self.look_later();
            } else {
                self.sleep()?;
            }
        }
    }

    /// Once through both directions. Says whether there was something to do.
    #[inline]
    fn round(&mut self) -> Result<bool, Broken> {
        let timed = self.is_timed();
        let Self { tx, rx, port, pool, arrived, .. } = self;
        let (serving, stats) = (&*self.serving, &*self.stats);
        let around = Around { serving, stats, clock: &self.clock, timed };
        let sent = tx.round(&around, port, pool);
        // At once: a guest that waits for room goes on while its packets are sent.
        notify(&self.channels, sent.notify, None, &self.stats)?;
        let most = rx.room(around.serving, pool);
        let turned = port.turn(pool, most, arrived)?;
        around.stats.tx_packets.add(turned.sent);
        if turned.lost > 0 {
            around.stats.lose(Loss::Port, turned.lost);
        }
        steer(arrived, most, self.number, around.serving, pool, around.stats);
        let received = rx.round(&around, arrived, pool);
        notify(&self.channels, None, received.notify, &self.stats)?;
        if let Some(stalled) = received.stalled {
            self.stall(stalled);
        }
        // A fault is acted on after what came before it was served.
        match sent.fault.or(received.fault) {
            Some(fault) => Err(fault.into()),
            None => Ok(sent.worked || received.worked),
        }
    }

    /// Whether the time has to be known exactly: there is a rate, or memory to be asked for again.
    #[inline]
    fn is_timed(&self) -> bool {
        let limits = &self.serving.limits;
        limits.tx.is_set() || limits.rx.is_set() || self.tx.until().is_some()
    }

    /// Takes in that the guest stopped posting pages, or does so again.
    #[cold]
    fn stall(&mut self, stalled: bool) {
        self.stalled = stalled;
        self.stats.rx_stalls.add(u64::from(stalled));
        let Some(up) = self.serving.stall(stalled) else { return };
        tracing::warn!(up, "the guest's link, for the pages that it posts");
        if let Err(error) = self.port.carrier(up) {
            tracing::warn!(%error, "the host's side of the link was not told");
        }
    }

    fn worked(&mut self) {
        // Asked for when the looking began, and every so often since.
        let now = self.clock.recent();
        self.polling.busy(now);
        self.listener.found();
        self.empty_looks = 0;
        self.last_work_ns = now;
        self.stats.turns.add(1);
        if !std::mem::take(&mut self.slept) {
            self.stats.polls_paid.add(1);
        }
    }

    /// Whether to look again rather than to sleep.
    fn look_again(&mut self) -> bool {
        if self.polling.window() > 0 {
            self.unmeasured = 0;
        } else {
            self.unmeasured = self.unmeasured.wrapping_add(1) % SLEEPS_PER_TIME;
        }
        if self.unmeasured > 0 {
            return false;
        }
        let looks = self.empty_looks.is_multiple_of(LOOKS_PER_TIME);
        let now = if looks { self.clock.now() } else { self.clock.recent() };
        self.polling.look_again(now)
    }

    fn look_later(&mut self) {
        self.empty_looks = self.empty_looks.wrapping_add(1);
        if self.empty_looks.is_multiple_of(LOOKS_PER_YIELD) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Sleeps until there is something to do, or to look at.
    fn sleep(&mut self) -> Result<(), Broken> {
        // Where the last sleep brought nothing, some of what we have may be given up by now.
        let timed = self.is_timed() || self.rx.waits() || self.slept;
        let now = if timed { self.clock.now() } else { self.clock.recent() };
        let mut until = self.tx.until();
        let mut sooner = |at: u64| until = Some(until.map_or(at, |until| until.min(at)));
        if let Some(at) = self.rx.until(&self.serving, now) {
            sooner(at);
        }
        if self.pool.keeps_any() {
            let idle = u64::try_from(self.serving.idle.as_nanos()).unwrap_or(u64::MAX);
            if self.last_work_ns.saturating_add(idle) <= now {
                self.pool.free_unused();
            } else {
                sooner(self.last_work_ns.saturating_add(idle));
            }
        }
        if self.tx.rearm()?.is_more() || self.rx.rearm()?.is_more() {
            return Ok(());
        }
        match self.listener.pause(&self.stats.empty_events, &self.stats.storms) {
            Some(ns) => sooner(now.saturating_add(ns)),
            None => self.channels.all().for_each(Channel::unmask),
        }
        self.stats.sleeps.add(1);
        self.slept = true;
        self.empty_looks = 0;
        let timeout = until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
        let receive = self.rx.room(&self.serving, &self.pool) > 0;
        let (tx, rx) = (self.channels.tx().as_fd(), self.channels.rx().as_fd());
        let watched = [self.control.fd(), tx, rx];
        let many = if matches!(self.channels, Channels::Both(_)) { 2 } else { 3 };
        let readable = self.port.wait(watched.get(..many).unwrap_or(&watched), receive, timeout)?;
        if readable.has(0) {
            self.control.heard();
        }
        // Each that rang is to be masked while we look; to ask the others costs as much and says nothing.
        let rang = (1..).zip(self.channels.all());
        if rang.filter(|(place, channel)| readable.has(*place) && channel.take()).count() > 0 {
            self.listener.rang(&self.stats.events);
        }
        self.clock.forget();
        if self.unmeasured == 0 {
            self.polling.woken(self.clock.now());
        }
        Ok(())
    }
}
