//! The device as a driver's users see it: open, wait until it is there, close.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Bell, Host, Lanes, control};
use crate::frontend::{Ending, Kind, Phase};
use crate::{DomId, HostError, PeerFault};

/// How long a backend has to let go when a device is closed.
pub const CLOSING: Duration = Duration::from_secs(10);

/// How the device is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status<O, I> {
    /// Where the device is.
    pub phase: Phase,
    /// Who serves it.
    pub backend: Option<DomId>,
    /// What it is.
    pub info: Option<I>,
    /// What the backend offers.
    pub offer: Option<O>,
    /// Whether the toolstack lets the backend be trusted.
    pub trusted: bool,
    /// How often it was connected.
    pub connections: u64,
    /// Pages that a backend would not let go of.
    pub quarantined: usize,
    /// Why it is over.
    pub ending: Option<Ending>,
}

impl<O, I> Default for Status<O, I> {
    fn default() -> Self {
        Self {
            phase: Phase::Waiting,
            backend: None,
            info: None,
            offer: None,
            trusted: false,
            connections: 0,
            quarantined: 0,
            ending: None,
        }
    }
}

/// Why a device could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nobody connected it in time.
    #[error(
        "the backend did not connect the device within {} s (it is {phase:?}); is the backend running?",
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

/// What a device of kind `K` is at the moment.
type StatusOf<H, K> = Status<<K as Kind<H>>::Offer, <K as Kind<H>>::Info>;

/// What the users of a device and the thread that follows the store share.
pub struct Shared<H: Host, K: Kind<H>, L> {
    pub(super) platform: H,
    pub(super) lanes: L,
    status: Mutex<StatusOf<H, K>>,
    changed: Condvar,
    orders: Mutex<Orders>,
    /// Wakes the control thread.
    pub(super) bell: Bell,
}

/// What the control thread was asked.
#[derive(Default)]
pub(super) struct Orders {
    /// To close the device, and until when to wait for the backend.
    pub(super) close: Option<Instant>,
    /// To end it for this.
    pub(super) fault: Option<PeerFault>,
}

impl<H: Host, K: Kind<H>, L> Shared<H, K, L> {
    /// The domain.
    pub fn platform(&self) -> &H {
        &self.platform
    }

    /// The queues.
    pub fn lanes(&self) -> &L {
        &self.lanes
    }

    /// How the device is.
    pub fn status(&self) -> MutexGuard<'_, StatusOf<H, K>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue found that the backend broke the protocol.
    pub fn report(&self, fault: PeerFault) {
        self.orders().fault = Some(fault);
        self.bell.ring();
    }

    pub(super) fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the status and tells whoever waits for that.
    pub(super) fn change(&self, change: impl FnOnce(&mut StatusOf<H, K>)) {
        change(&mut self.status());
        self.changed.notify_all();
    }
}

impl<H: Host, K: Kind<H>, L> fmt::Debug for Shared<H, K, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("phase", &self.status().phase).finish_non_exhaustive()
    }
}

/// A device of this process's domain, in use. Dropping it closes it.
pub struct User<H: Host, K: Kind<H>, L> {
    shared: Arc<Shared<H, K, L>>,
    control: Option<JoinHandle<()>>,
}

impl<H, K, L> User<H, K, L>
where
    H: Host,
    K: Kind<H, Links: Send, Offer: Send, Info: Send> + Send + 'static,
    L: Lanes<H, K>,
{
    /// The device in `directory` of the store, for the users of `lanes`. It is connected behind the
    /// caller's back; see [`wait`](Self::wait).
    ///
    /// # Errors
    ///
    /// The process has no file descriptors or threads left.
    pub fn open(platform: H, directory: &str, kind: K, lanes: L) -> Result<Self, HostError> {
        let shared = Arc::new(Shared {
            platform,
            lanes,
            status: Mutex::new(Status::default()),
            changed: Condvar::new(),
            orders: Mutex::new(Orders::default()),
            bell: Bell::new()?,
        });
        let control = control::start(Arc::clone(&shared), directory.to_owned(), kind)?;
        Ok(Self { shared, control: Some(control) })
    }

    /// Waits until the device is connected.
    ///
    /// # Errors
    ///
    /// It is not within `patience`, or it is over.
    pub fn wait(&self, patience: Duration) -> Result<K::Info, OpenError> {
        let deadline = Instant::now().checked_add(patience);
        let mut status = self.shared.status();
        loop {
            if let Some(ending) = &status.ending {
                return Err(OpenError::Over(ending.clone()));
            }
            if let (Phase::Connected, Some(info)) = (status.phase, &status.info) {
                return Ok(info.clone());
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

    /// What this and each of its queues share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared<H, K, L>> {
        &self.shared
    }
}

impl<H: Host, K: Kind<H>, L> User<H, K, L> {
    /// Closes the device: its users end, and the backend is given [`CLOSING`] to let
    /// go.
    pub fn close(self) {}
}

impl<H: Host, K: Kind<H>, L> Drop for User<H, K, L> {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            self.shared.orders().close =
                Some(Instant::now().checked_add(CLOSING).unwrap_or_else(Instant::now));
            self.shared.bell.ring();
            if control.join().is_err() {
                tracing::error!("the thread that follows the store panicked");
            }
        }
    }
}
