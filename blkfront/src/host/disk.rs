//! The disk as its users see it: open, wait until it is there, take queues, close.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor::{DomId, Error, HostError, PeerFault};
use nix::errno::Errno;

use crate::arena::Arena;
use crate::device::{Config, Ending, Phase};
use crate::host::bell::Bell;
use crate::host::control;
use crate::host::queue::HostQueue;
use crate::host::{Host, HostBuffer};
use crate::negotiate::{DiskInfo, Offer};
use crate::queue::{Counters, Queue};

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

/// Why a disk could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nobody connected it in time.
    #[error(
        "the backend did not connect the disk within {} s (it is {phase:?}); is the backend running?",
        waited.as_secs()
    )]
    Late {
        /// How long was waited.
        waited: Duration,
        /// How far it got.
        phase: Phase,
    },
    /// It is over.
    #[error("{0}")]
    Over(Ending),
}

pub(super) struct Shared<H: Host> {
    pub(super) platform: H,
    pub(super) lanes: Vec<Lane<H>>,
    status: Mutex<Status>,
    changed: Condvar,
    orders: Mutex<Orders>,
    /// Wakes the control thread.
    pub(super) bell: Bell,
    taken: Mutex<Vec<bool>>,
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

/// What the control thread was asked.
#[derive(Default)]
pub(super) struct Orders {
    /// To close the disk, and until when to wait for the backend.
    pub(super) close: Option<Instant>,
    /// To end it for this.
    pub(super) fault: Option<PeerFault>,
}

impl<H: Host> Shared<H> {
    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the status and tells whoever waits for that.
    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status());
        self.changed.notify_all();
    }

    /// A queue found that the backend broke the protocol.
    pub(super) fn report(&self, fault: PeerFault) {
        self.orders().fault = Some(fault);
        self.bell.ring();
    }

    pub(super) fn give_back(&self, number: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = taken.get_mut(number) {
            *taken = false;
        }
    }
}

/// A disk of this process's domain. Dropping it closes it.
pub struct HostDisk<H: Host> {
    shared: Arc<Shared<H>>,
    control: Option<JoinHandle<()>>,
}

impl<H: Host> HostDisk<H> {
    /// How long a backend has to let go when a disk is closed.
    pub const CLOSING: Duration = Duration::from_secs(10);

    /// The disk in `directory` of the store. It is connected behind the caller's back; see
    /// [`wait`](Self::wait).
    ///
    /// # Errors
    ///
    /// The process has no file descriptors or threads left.
    pub fn open(platform: H, directory: &str, config: Config) -> Result<Self, Error> {
        let lanes = (0..config.queues.max(1))
            .map(|_| {
                let queue = Mutex::new(Queue::new(config.depth));
                Ok(Lane { queue, bell: Bell::new()? })
            })
            .collect::<Result<Vec<_>, HostError>>()?;
        let status = Status {
            phase: Phase::Waiting,
            backend: None,
            info: None,
            offer: None,
            trusted: false,
            slots: 0,
            queues: 0,
            connections: 0,
            quarantined: 0,
            ending: None,
        };
        let shared = Arc::new(Shared {
            platform,
            taken: Mutex::new(vec![false; lanes.len()]),
            lanes,
            status: Mutex::new(status),
            changed: Condvar::new(),
            orders: Mutex::new(Orders::default()),
            bell: Bell::new()?,
        });
        let control = control::start(Arc::clone(&shared), directory.to_owned(), config)?;
        Ok(Self { shared, control: Some(control) })
    }

    /// Waits until the disk is connected.
    ///
    /// # Errors
    ///
    /// It is not within `patience`, or it is over.
    pub fn wait(&self, patience: Duration) -> Result<DiskInfo, OpenError> {
        let deadline = Instant::now().checked_add(patience);
        let mut status = self.shared.status();
        loop {
            if let Some(ending) = &status.ending {
                return Err(OpenError::Over(ending.clone()));
            }
            if let (Phase::Connected, Some(info)) = (status.phase, status.info) {
                return Ok(info);
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return Err(OpenError::Late { waited: patience, phase: status.phase });
            }
            let waited = self.shared.changed.wait_timeout(status, left);
            status = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }

    /// What all its queues have done so far, together.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut all = Counters::default();
        for lane in &self.shared.lanes {
            all.add(&lane.lock().counters());
        }
        all
    }

    /// Takes a queue for oneself, until it is dropped; `None` where others have them all. Before the
    /// disk is connected there are none.
    #[must_use]
    pub fn queue(&self) -> Option<HostQueue<H>> {
        let served = self.shared.status().queues;
        let mut taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.iter().take(served).position(|taken| !taken)?;
        *taken.get_mut(number)? = true;
        Some(HostQueue::new(Arc::clone(&self.shared), number))
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
            let status = self.shared.status();
            let nobody =
                || refused("grant memory to a backend that is not known yet", Errno::ENOTCONN);
            (status.backend.ok_or_else(nobody)?, status.trusted)
        };
        if !trusted {
            let what = "grant request buffers to a backend that is not to be trusted (the \
                        toolstack says trusted=0 of this disk); let them be copied instead";
            return Err(refused(what, Errno::EPERM));
        }
        Arena::new(&self.shared.platform, peer, pages)
    }

    /// Closes the disk: requests end, and the backend is given [`CLOSING`](Self::CLOSING) to let go.
    pub fn close(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if let Some(control) = self.control.take() {
            self.shared.orders().close =
                Some(Instant::now().checked_add(Self::CLOSING).unwrap_or_else(Instant::now));
            self.shared.bell.ring();
            if control.join().is_err() {
                tracing::error!("the thread that follows the store panicked");
            }
        }
    }
}

impl<H: Host> Drop for HostDisk<H> {
    fn drop(&mut self) {
        self.finish();
    }
}
