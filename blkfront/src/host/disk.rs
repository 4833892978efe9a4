//! The disk as its users see it: open, wait until it is there, take queues, close.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::frontend::host::{self, Bell, Lanes, User};
use hypervisor::{DomId, Error, HostError};
use nix::errno::Errno;

use crate::arena::Arena;
use crate::device::{Block, Config, Ending, Phase};
use crate::host::queue::HostQueue;
use crate::host::{Host, HostBuffer, OpenError};
use crate::link::Link;
use crate::negotiate::{DiskInfo, Offer};
use crate::queue::{Counters, Queue};
use crate::request::IoError;

/// How the disk is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Where the device is.
    pub phase: Phase,
    /// Who serves it.
    pub backend: Option<DomId>,
    /// What it is.
    pub info: Option<DiskInfo>,
    /// What the backend offers.
    pub offer: Option<Offer>,
    /// Whether the toolstack lets the backend be trusted.
    pub trusted: bool,
    /// Requests that each queue's ring holds.
    pub slots: u32,
    /// Queues that are served.
    pub queues: usize,
    /// How often it was connected.
    pub connections: u64,
    /// Pages that a backend would not let go of.
    pub quarantined: usize,
    /// Why it is over.
    pub ending: Option<Ending>,
}

/// What a disk's queues and the thread that follows the store share.
pub(super) type Shared<H> = host::Shared<H, Block, Queues<H>>;

/// All queues of a disk.
pub(super) struct Queues<H: Host> {
    lanes: Vec<Lane<H>>,
    taken: Mutex<Vec<bool>>,
    /// Queues that are served.
    served: AtomicUsize,
    /// Requests that each queue's ring holds.
    slots: AtomicU32,
}

/// A queue, and what wakes whoever waits at it besides its event channel.
pub(super) struct Lane<H: Host> {
    queue: Mutex<Queue<H, HostBuffer<H>>>,
    pub(super) bell: Bell,
}

impl<H: Host> Lane<H> {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue<H, HostBuffer<H>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Host> Queues<H> {
    fn new(config: &Config) -> Result<Self, HostError> {
        let lanes = (0..config.queues.max(1))
            .map(|_| {
                let queue = Mutex::new(Queue::new(config.depth));
                Ok(Lane { queue, bell: Bell::new()? })
            })
            .collect::<Result<Vec<_>, HostError>>()?;
        Ok(Self {
            taken: Mutex::new(vec![false; lanes.len()]),
            lanes,
            served: AtomicUsize::new(0),
            slots: AtomicU32::new(0),
        })
    }

    pub(super) fn lane(&self, number: usize) -> Option<&Lane<H>> {
        self.lanes.get(number)
    }

    pub(super) fn give_back(&self, number: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = taken.get_mut(number) {
            *taken = false;
        }
    }

    fn ring(&self) {
        self.lanes.iter().for_each(|lane| lane.bell.ring());
    }
}

impl<H: Host> Lanes<H, Block> for Queues<H> {
    fn attach(&self, links: Vec<Link<H>>, info: DiskInfo) {
        let slots = links.first().map_or(0, Link::slots);
        self.slots.store(slots, Ordering::Relaxed);
        self.served.store(links.len(), Ordering::Relaxed);
        tracing::info!(size = info.size, queues = links.len(), slots, "disk");
        for (lane, link) in self.lanes.iter().zip(links) {
            lane.lock().attach(link, info);
        }
        self.ring();
    }

    fn detach(&self) -> Vec<Link<H>> {
        let links = self.lanes.iter().filter_map(|lane| lane.lock().detach()).collect();
        self.ring();
        links
    }

    fn update(&self, info: DiskInfo) {
        tracing::info!(size = info.size, "disk");
        self.lanes.iter().for_each(|lane| lane.lock().update(info));
        self.ring();
    }

    fn end(&self, ending: &Ending) -> Vec<Link<H>> {
        let error = IoError::of(ending);
        let links = self.lanes.iter().filter_map(|lane| lane.lock().end(error)).collect();
        self.ring();
        links
    }
}

/// A disk of this process's domain. Dropping it closes it.
pub struct HostDisk<H: Host> {
    user: User<H, Block, Queues<H>>,
}

impl<H: Host> HostDisk<H> {
    /// The disk in `directory` of the store. It is connected behind the caller's back; see
    /// [`wait`](Self::wait).
    ///
    /// # Errors
    ///
    /// The process has no file descriptors or threads left.
    pub fn open(platform: H, directory: &str, config: Config) -> Result<Self, Error> {
        let queues = Queues::new(&config)?;
        let user = User::open(platform, directory, Block::new(config), queues)?;
        Ok(Self { user })
    }

    /// Waits until the disk is connected.
    ///
    /// # Errors
    ///
    /// It is not within `patience`, or it is over.
    pub fn wait(&self, patience: Duration) -> Result<DiskInfo, OpenError> {
        self.user.wait(patience)
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        let queues = self.user.shared().lanes();
        let status = self.user.shared().status();
        Status {
            phase: status.phase,
            backend: status.backend,
            info: status.info,
            offer: status.offer,
            trusted: status.trusted,
            slots: queues.slots.load(Ordering::Relaxed),
            queues: queues.served.load(Ordering::Relaxed),
            connections: status.connections,
            quarantined: status.quarantined,
            ending: status.ending.clone(),
        }
    }

    /// What all its queues have done so far, together.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut all = Counters::default();
        for lane in &self.user.shared().lanes().lanes {
            all.add(&lane.lock().counters());
        }
        all
    }

    /// Takes a queue for oneself, until it is dropped; `None` where others have them all. Before the
    /// disk is connected there are none.
    #[must_use]
    pub fn queue(&self) -> Option<HostQueue<H>> {
        let queues = self.user.shared().lanes();
        let served = queues.served.load(Ordering::Relaxed);
        let mut taken = queues.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.iter().take(served).position(|taken| !taken)?;
        *taken.get_mut(number)? = true;
        Some(HostQueue::new(Arc::clone(self.user.shared()), number))
    }

    /// Memory that is granted to the backend itself, for requests that copy nothing. Whoever uses
    /// it trusts the backend with what is in it.
    ///
    /// # Errors
    ///
    /// The disk was never connected, the toolstack says that its backend is not to be trusted, or
    /// the domain has not so much memory.
    pub fn arena(&self, pages: usize) -> Result<Arena<H::Memory>, HostError> {
        let refused = |what, errno: Errno| HostError::new(what, errno as i32);
        let (peer, trusted) = {
            let status = self.user.shared().status();
            let nobody =
                || refused("grant memory to a backend that is not known yet", Errno::ENOTCONN);
            (status.backend.ok_or_else(nobody)?, status.trusted)
        };
        if !trusted {
            let what = "grant request buffers to a backend that is not to be trusted (the \
                        toolstack says trusted=0 of this disk); let them be copied instead";
            return Err(refused(what, Errno::EPERM));
        }
        Arena::new(self.user.shared().platform(), peer, pages)
    }

    /// Closes the disk: requests end, and the backend is given
    /// [`CLOSING`](hypervisor::frontend::host::CLOSING) to let go.
    pub fn close(self) {
        self.user.close();
    }
}
