//! The interface as its users see it: open, wait until it is there, take queues, close.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::frontend::host::{self, Bell, Lanes, User};
use hypervisor::{DomId, Error, HostError};

use crate::control::{Control, HashState};
use crate::device::{Config, Connection, Ending, Net, Phase};
use crate::host::queue::HostQueue;
use crate::host::{Host, OpenError};
use crate::negotiate::{NetInfo, Offer};
use crate::queue::{Counters, Queue};

/// How the interface is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Where the device is.
    pub phase: Phase,
    /// Who serves it.
    pub backend: Option<DomId>,
    /// What it is.
    pub info: Option<NetInfo>,
    /// What the backend offers.
    pub offer: Option<Offer>,
    /// Whether the toolstack lets the backend be trusted. It is not, whatever that says.
    pub trusted: bool,
    /// Queues that are served.
    pub queues: usize,
    /// How often it was connected.
    pub connections: u64,
    /// Pages that a backend would not let go of.
    pub quarantined: usize,
    /// How far the backend was told how to spread packets.
    pub hash: HashState,
    /// Why it is over.
    pub ending: Option<Ending>,
}

/// What an interface's queues and the thread that follows the store share.
pub(super) type Shared<H> = host::Shared<H, Net, Queues<H>>;

/// All queues of an interface.
pub(super) struct Queues<H: Host> {
    lanes: Vec<Lane<H>>,
    /// Belongs to whoever has the first queue.
    control: Mutex<Control<H>>,
    taken: Mutex<Vec<bool>>,
    /// Queues that are served.
    served: AtomicUsize,
}

/// A queue, and what wakes whoever waits at it besides its event channels.
pub(super) struct Lane<H: Host> {
    queue: Mutex<Queue<H>>,
    pub(super) bell: Bell,
}

impl<H: Host> Lane<H> {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue<H>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Host> Queues<H> {
    fn new(config: &Config) -> Result<Self, HostError> {
        let lanes = (0..config.queues.max(1))
            .map(|_| Ok(Lane { queue: Mutex::new(Queue::new()), bell: Bell::new()? }))
            .collect::<Result<Vec<_>, HostError>>()?;
        Ok(Self {
            taken: Mutex::new(vec![false; lanes.len()]),
            lanes,
            control: Mutex::new(Control::new(config.hash.clone())),
            served: AtomicUsize::new(0),
        })
    }

    pub(super) fn lane(&self, number: usize) -> Option<&Lane<H>> {
        self.lanes.get(number)
    }

    pub(super) fn control(&self) -> MutexGuard<'_, Control<H>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn links(&self) -> Connection<H> {
        let queues = self.lanes.iter().filter_map(|lane| lane.lock().detach()).collect();
        let links = Connection::of(queues, self.control().detach());
        self.ring();
        links
    }
}

impl<H: Host> Lanes<H, Net> for Queues<H> {
    fn attach(&self, links: Connection<H>, info: NetInfo) {
        self.served.store(links.queues.len(), Ordering::Relaxed);
        tracing::info!(queues = links.queues.len(), mtu = info.mtu, "interface");
        for (lane, link) in self.lanes.iter().zip(links.queues) {
            lane.lock().attach(link, links.multicast_control);
        }
        self.control().attach(links.control);
        self.ring();
    }

    fn detach(&self) -> Connection<H> {
        self.links()
    }

    fn update(&self, info: NetInfo) {
        tracing::info!(carrier = info.carrier, mtu = info.mtu, "interface");
        self.ring();
    }

    fn end(&self, _ending: &Ending) -> Connection<H> {
        self.links()
    }
}

/// An interface of this process's domain. Dropping it closes it.
pub struct HostInterface<H: Host> {
    user: User<H, Net, Queues<H>>,
}

impl<H: Host> HostInterface<H> {
    /// The interface in `directory` of the store. It is connected behind the caller's back; see
    /// [`wait`](Self::wait).
    ///
    /// # Errors
    ///
    /// The process has no file descriptors or threads left.
    pub fn open(platform: H, directory: &str, config: Config) -> Result<Self, Error> {
        let queues = Queues::new(&config)?;
        let user = User::open(platform, directory, Net::new(config), queues)?;
        Ok(Self { user })
    }

    /// Waits until the interface is connected.
    ///
    /// # Errors
    ///
    /// It is not within `patience`, or it is over.
    pub fn wait(&self, patience: Duration) -> Result<NetInfo, OpenError> {
        self.user.wait(patience)
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        let queues = self.user.shared().lanes();
        let hash = queues.control().state();
        let status = self.user.shared().status();
        Status {
            phase: status.phase,
            backend: status.backend,
            info: status.info,
            offer: status.offer,
            trusted: status.trusted,
            queues: queues.served.load(Ordering::Relaxed),
            connections: status.connections,
            quarantined: status.quarantined,
            hash,
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
    /// interface is connected there are none.
    #[must_use]
    pub fn queue(&self) -> Option<HostQueue<H>> {
        let queues = self.user.shared().lanes();
        let served = queues.served.load(Ordering::Relaxed);
        let mut taken = queues.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.iter().take(served).position(|taken| !taken)?;
        *taken.get_mut(number)? = true;
        Some(HostQueue::new(Arc::clone(self.user.shared()), number))
    }

    /// Closes the interface: the backend is given [`CLOSING`](hypervisor::frontend::host::CLOSING) to
    /// let go.
    pub fn close(self) {
        self.user.close();
    }
}
