//! Puts a queue together on a thread of its own.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use hypervisor::event::Channel;
use hypervisor::memory::{Memory, Using};
use hypervisor::vhost_user::{Bell, Region, Table};
use hypervisor::{DomId, HostError};
use ring::wire::blkif::{Layout as RingLayout, Native, X86_32, X86_64};

use super::{Command, Control, Ended, Queue, Serving};
use crate::acquire::{Grants, GuestAddress, GuestMemory, Hold, InFlight, InPage, Mapped};
use crate::connect::{Features, Layout, Link};
use crate::engine::Engine;
use crate::journal::{Journaled, Kept};
use crate::policy::acquire::Reach;
use crate::receive::{Requests, VirtioQueue, XenRing};
use crate::stats::Stats;

/// What a queue of a Xen ring is made of.
#[derive(Debug)]
pub struct Parts<U: Using, C> {
    /// The thread's name.
    pub name: String,
    /// Whose requests these are.
    pub peer: DomId,
    /// How they are laid out.
    pub layout: Layout,
    /// What was negotiated.
    pub features: Features,
    /// The ring and its channel.
    pub link: Link<U::Mapping, C>,
    /// What was and is written down of its requests.
    pub journal: Option<Kept>,
    /// Who we are to the hypervisor.
    pub domain: U,
    /// What the device's queues have in common.
    pub serving: Arc<Serving>,
    /// Where to count.
    pub stats: Arc<Stats>,
}

/// A queue that was started.
#[derive(Debug)]
pub struct Handle {
    control: Arc<Control>,
    stats: Arc<Stats>,
    thread: JoinHandle<Ended>,
}

impl Handle {
    /// Tells it what to do from now on.
    pub fn tell(&self, command: Command) {
        self.control.tell(command);
    }

    /// Makes it look at what was changed in [`Serving`].
    pub fn wake(&self) {
        self.control.wake();
    }

    /// What it counts.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Whether it has ended by itself or as told.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. Tell it to drain or to stop first.
    #[must_use]
    pub fn join(self) -> Ended {
        self.thread.join().unwrap_or_else(|_| Ended::Failed(panicked()))
    }
}

fn panicked() -> HostError {
    HostError::new("serve a queue: its thread panicked", libc::EIO)
}

/// Starts a queue. `engine` is called on the queue's thread, since an engine may belong to the
/// thread that makes it; `at_end` is called there last of all, when ring, grants and engine are
/// given up.
///
/// # Errors
///
/// There is no descriptor or thread to be had. That the ring or the engine cannot be had ends the
/// queue, and is told as every other end.
pub fn spawn<U, C, E, F>(
    parts: Parts<U, C>,
    engine: F,
    at_end: impl FnOnce(&Ended) + Send + 'static,
) -> Result<Handle, HostError>
where
    U: Using + Send + 'static,
    C: Channel + AsFd + Send + 'static,
    E: Engine<InFlight<Hold<U::Mapping>, InPage>>,
    F: FnOnce() -> Result<E, HostError> + Send + 'static,
{
    let (name, stats) = (parts.name.clone(), Arc::clone(&parts.stats));
    thread(name, stats, move |control| serve(parts, control, engine), at_end)
}

/// What a queue of a virtual machine's is made of.
#[derive(Debug)]
pub struct MachineParts {
    /// The thread's name.
    pub name: String,
    /// Where requests come from.
    pub requests: VirtioQueue,
    /// The machine's memory.
    pub memory: Arc<Table>,
    /// By which it is told of requests, and tells of answers.
    pub bell: Bell,
    /// What the device's queues have in common.
    pub serving: Arc<Serving>,
    /// Where to count.
    pub stats: Arc<Stats>,
}

/// Starts a queue of a virtual machine's, otherwise as [`spawn`] does.
///
/// # Errors
///
/// There is no descriptor or thread to be had.
pub fn spawn_for_machine<E, F>(
    parts: MachineParts,
    engine: F,
    at_end: impl FnOnce(&Ended) + Send + 'static,
) -> Result<Handle, HostError>
where
    E: Engine<InFlight<Hold<Arc<Region>>, GuestAddress>>,
    F: FnOnce() -> Result<E, HostError> + Send + 'static,
{
    let MachineParts { name, requests, memory, bell, serving, stats } = parts;
    let theirs = Arc::clone(&stats);
    let serve = move |control| {
        let engine = match engine() {
            Ok(engine) => engine,
            Err(error) => return Ended::Failed(error),
        };
        theirs.reissued.add(requests.owed() as u64);
        // Whoever published last may have been killed before it said so.
        if let Err(error) = bell.notify() {
            return Ended::Failed(error);
        }
        run(requests, (Mapped::new(memory), engine, bell), (serving, control), theirs)
    };
    thread(name, stats, serve, at_end)
}

fn thread(
    name: String,
    stats: Arc<Stats>,
    serve: impl FnOnce(Arc<Control>) -> Ended + Send + 'static,
    at_end: impl FnOnce(&Ended) + Send + 'static,
) -> Result<Handle, HostError> {
    let control = Control::new()?;
    let theirs = Arc::clone(&control);
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            // Whoever waits for this end is told of it, even of a panic before the loop.
            let serve = AssertUnwindSafe(|| serve(theirs));
            let ended = catch_unwind(serve).unwrap_or_else(|_| Ended::Failed(panicked()));
            at_end(&ended);
            ended
        })
        .map_err(|error| HostError::from_io("start a queue's thread", &error))?;
    Ok(Handle { control, stats, thread })
}

fn serve<U, C, E, F>(parts: Parts<U, C>, control: Arc<Control>, engine: F) -> Ended
where
    U: Using,
    C: Channel + AsFd,
    E: Engine<InFlight<Hold<U::Mapping>, InPage>>,
    F: FnOnce() -> Result<E, HostError>,
{
    let engine = match engine() {
        Ok(engine) => engine,
        Err(error) => return Ended::Failed(error),
    };
    match parts.layout {
        Layout::X86_32 => over::<X86_32, _, _, _>(parts, control, engine),
        Layout::X86_64 => over::<X86_64, _, _, _>(parts, control, engine),
        Layout::Native => over::<Native, _, _, _>(parts, control, engine),
    }
}

fn over<L, U, C, E>(parts: Parts<U, C>, control: Arc<Control>, engine: E) -> Ended
where
    L: RingLayout,
    U: Using,
    U::Mapping: Memory,
    C: Channel + AsFd,
    E: Engine<InFlight<Hold<U::Mapping>, InPage>>,
{
    let Parts { peer, features, link, journal, domain, serving, stats, .. } = parts;
    let how = serving.reach.unwrap_or(Reach::for_frontend(features.persistent, serving.mapping));
    let memory = Grants::new(domain, peer, how);
    let ends = (memory, engine, link.channel);
    let about = (serving, control);
    let most = features.indirect_segments;
    let Some(Kept { journal, owed, resumed }) = journal else {
        return match XenRing::<L, _>::attach(link.ring, peer) {
            Ok(requests) => run(requests.with_indirect(most), ends, about, stats),
            Err(fault) => Ended::Fault(fault),
        };
    };
    let found = XenRing::<L, _>::resume(link.ring, peer, owed.taken, owed.published);
    let (requests, slots) = match found {
        Ok(found) => found,
        Err(fault) => return Ended::Fault(fault),
    };
    if resumed {
        stats.reissued.add(owed.requests.len() as u64);
        // Whoever published last may have been killed before it said so.
        if let Err(error) = ends.2.notify() {
            return Ended::Failed(error);
        }
    }
    let requests = requests.with_indirect(most);
    run(Journaled::new(requests, journal, owed.requests, slots), ends, about, stats)
}

fn run<R, G, E, C>(
    requests: R,
    (memory, engine, channel): (G, E, C),
    (serving, control): (Arc<Serving>, Arc<Control>),
    stats: Arc<Stats>,
) -> Ended
where
    R: Requests,
    G: GuestMemory<Place = R::Place>,
    E: Engine<InFlight<G::Hold, R::Place>>,
    C: Channel + AsFd,
{
    Queue::new((requests, memory, engine, channel), serving, control, stats).run()
}
