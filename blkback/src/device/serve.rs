//! The daemon's loop: one disk, for one guest after the other.
//!
//! ```text
//!   wait for the guest ──> make the device ──> settle, wait, settle, ... ──> remove the device ─┐
//!          ^                                        │ asked to leave, or the device is over     │
//!          └───────────── the guest is gone <───────┴──────────────> end <──────────────────────┘
//! ```
//!
//! Everything that changes the device happens on the thread that calls [`Serving::run`]; others put
//! messages in its [`Mailbox`].

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hypervisor::store::{Transactions, Watches};
use hypervisor::xenbus::device::Removed;
use hypervisor::xenbus::{Pair, State};
use hypervisor::{DomId, Error, HostError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::connect::xenbus::Offer;
use crate::device::backend::{Backend, History, Settled};
use crate::device::guest::{self, Guest, Wanted};
use crate::device::mailbox::{Mailbox, Slot};
use crate::device::toolstack::{self, Order};
use crate::device::{Platform, Service};

/// How long a frontend that is asked to leave may take, as libxl has it.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The most changes taken from a store's connection before the device is looked at: one look
/// answers any number of them (advisory 349).
const CHANGES: usize = 256;
/// What our watches are registered with.
const TOKEN: &str = "blkback";

/// A way to the store that can be waited at.
pub trait Meeting: Transactions + Watches + AsFd {}

impl<T: Transactions + Watches + AsFd> Meeting for T {}

/// What others ask of the loop.
#[derive(Debug)]
pub enum Message {
    /// Take another size.
    Resize {
        /// In bytes; without one, that which the image has now.
        size: Option<u64>,
        /// Where the new size goes, or why there is none.
        reply: SyncSender<Result<u64, String>>,
    },
    /// Have the queues look at their limits again.
    Wake,
    /// Take the disk away from the guest, and end.
    Leave {
        /// At once, whatever the guest is doing with it.
        force: bool,
        /// Told when it is done, where somebody waits for that.
        reply: Option<SyncSender<Result<u64, String>>>,
    },
}

/// Whom to serve, and what to make for it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The backend's own domain.
    pub me: DomId,
    /// The guest.
    pub wanted: Wanted,
    /// The device.
    pub order: Order,
    /// What a frontend may choose from.
    pub offer: Offer,
}

/// What can be said of the device at any time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The guest that is served.
    pub guest: Option<Guest>,
    /// Our end's state.
    pub own: State,
    /// The frontend's.
    pub peer: State,
    /// What has happened so far.
    pub history: History,
}

/// A [`Status`] that others look at.
#[derive(Clone, Debug)]
pub struct Board(Arc<Mutex<Status>>);

impl Board {
    fn new() -> Self {
        let (own, peer) = (State::Unknown, State::Unknown);
        let history = History::default();
        Self(Arc::new(Mutex::new(Status { guest: None, own, peer, history })))
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How things are.
    #[must_use]
    pub fn read(&self) -> Status {
        self.lock().clone()
    }
}

/// Why the loop ended, where nothing went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// Somebody else, a toolstack, took the device away.
    Detached(Guest),
    /// The one domain that was to be served is gone.
    Gone(Wanted),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("detached"),
            Self::Detached(guest) => write!(f, "the disk was taken away from {guest}"),
            Self::Gone(wanted) => write!(f, "domain {wanted} is gone"),
        }
    }
}

/// A guest that is served.
struct Served<H: Platform, V: Service<H>> {
    guest: Guest,
    pair: Pair,
    backend: Backend<H, V>,
}

/// The loop and all that it needs.
pub struct Serving<'a, H: Platform, S, C, V: Service<H>> {
    domain: &'a H,
    store: &'a S,
    control: &'a C,
    service: &'a V,
    plan: Plan,
    mailbox: Mailbox<Message>,
    board: Board,
    served: Option<Served<H, V>>,
    /// Until when the frontend may let go of the device by itself.
    leaving: Option<Instant>,
    replies: Vec<SyncSender<Result<u64, String>>>,
}

impl<'a, H, S, C, V> Serving<'a, H, S, C, V>
where
    H: Platform,
    S: Meeting,
    C: Meeting,
    V: Service<H>,
{
    /// Serves `service` as `plan` says, in `domain`. `store` is the domain's own way to the store,
    /// `control` one with a toolstack's rights.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left, or the store is gone.
    pub fn new(
        domain: &'a H,
        store: &'a S,
        control: &'a C,
        service: &'a V,
        plan: Plan,
    ) -> Result<Self, Error> {
        for special in ["@introduceDomain", "@releaseDomain"] {
            control.watch(special, TOKEN)?;
        }
        Ok(Self {
            domain,
            store,
            control,
            service,
            plan,
            mailbox: Mailbox::new()?,
            board: Board::new(),
            served: None,
            leaving: None,
            replies: Vec::new(),
        })
    }

    /// Where messages for the loop are put in.
    #[must_use]
    pub fn slot(&self) -> Slot<Message> {
        self.mailbox.slot()
    }

    /// Where the device's status can be read.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Serves until asked to end, and leaves nothing of the device in the store.
    ///
    /// # Errors
    ///
    /// The store is gone, or the device cannot be made. What was under way is finished and answered
    /// even so, and what can still be removed is.
    pub fn run(mut self) -> Result<Ended, Error> {
        let ended = self.serve();
        if ended.is_err()
            && let Some(mut served) = self.served.take()
        {
            served.backend.detach();
            // The first error says more than that the store is gone for this as well.
            let _ = served.backend.close(self.store);
            let _ = served.pair.remove(self.control, true);
        }
        let told = match &ended {
            Ok(_) => Ok(0),
            Err(error) => Err(error.to_string()),
        };
        for reply in self.replies.drain(..) {
            // Who asked may have gone.
            let _ = reply.try_send(told.clone());
        }
        ended
    }

    fn serve(&mut self) -> Result<Ended, Error> {
        loop {
            if let Some(ended) = self.look()? {
                return Ok(ended);
            }
            self.wait()?;
            drain(self.store)?;
            drain(self.control)?;
            for message in self.mailbox.take() {
                self.obey(message)?;
            }
        }
    }

    /// Does all that there is to do now.
    fn look(&mut self) -> Result<Option<Ended>, Error> {
        if let Some(served) = &self.served
            && !guest::lives(self.control, served.guest.id)?
        {
            self.let_go()?;
            if matches!(self.plan.wanted, Wanted::Id(_)) && self.leaving.is_none() {
                return Ok(Some(Ended::Gone(self.plan.wanted.clone())));
            }
        }
        if self.served.is_none() {
            if self.leaving.is_some() {
                return Ok(Some(Ended::Asked));
            }
            if let Some(guest) = self.plan.wanted.find(self.control)? {
                self.begin(guest)?;
            }
        }
        let Some(served) = &mut self.served else { return Ok(None) };
        let settled = served.backend.settle(self.domain, self.store, self.service)?;
        let (own, peer) = served.backend.states(self.store)?;
        let guest = served.guest.clone();
        {
            let mut status = self.board.lock();
            (status.own, status.peer) = (own, peer);
            status.history = served.backend.history.clone();
        }
        let overdue = self.leaving.is_some_and(|deadline| Instant::now() >= deadline);
        if settled == Settled::Over || overdue {
            if overdue {
                tracing::warn!(%guest, "did not let go of the disk in time; taken away");
            } else if self.leaving.is_some() && self.wait_for_front()? {
                return Ok(None);
            }
            self.let_go()?;
            let asked = self.leaving.is_some();
            return Ok(Some(if asked { Ended::Asked } else { Ended::Detached(guest) }));
        }
        Ok(None)
    }

    /// Whether our end is down but the frontend's is not yet: it is about to be.
    fn wait_for_front(&self) -> Result<bool, Error> {
        let Some(served) = &self.served else { return Ok(false) };
        let removed = served.pair.remove(self.control, false)?;
        Ok(matches!(removed, Removed::Waiting(_)))
    }

    /// Makes the device for `guest`.
    fn begin(&mut self, guest: Guest) -> Result<(), Error> {
        let pair = match toolstack::make(self.control, self.plan.me, &guest, &self.plan.order) {
            Ok(pair) => pair,
            // It came and went: its directories cannot be its own.
            Err(_) if !guest::lives(self.control, guest.id)? => return Ok(()),
            Err(error) => return Err(error),
        };
        for directory in [&pair.front.directory, &pair.back.directory] {
            for key in ["state", "online"] {
                self.store.watch(&format!("{directory}/{key}"), TOKEN)?;
            }
        }
        tracing::info!(%guest, vdev = %self.plan.order.vdev, "device made");
        let history = {
            let mut status = self.board.lock();
            status.guest = Some(guest.clone());
            status.history.clone()
        };
        let backend = Backend::new(&pair, self.plan.offer, self.mailbox.waker(), history);
        self.served = Some(Served { guest, pair, backend });
        Ok(())
    }

    /// Lets the device go and removes it, whatever the frontend thinks of it.
    fn let_go(&mut self) -> Result<(), Error> {
        let Some(mut served) = self.served.take() else { return Ok(()) };
        served.backend.close(self.store)?;
        for directory in [&served.pair.front.directory, &served.pair.back.directory] {
            for key in ["state", "online"] {
                // A watch that is no more needs no removing; a store that is no more shows soon.
                let _ = self.store.unwatch(&format!("{directory}/{key}"), TOKEN);
            }
        }
        let _ = served.pair.remove(self.control, true)?;
        tracing::info!(guest = %served.guest, "device removed");
        let mut status = self.board.lock();
        (status.guest, status.own, status.peer) = (None, State::Unknown, State::Unknown);
        status.history = served.backend.history.clone();
        Ok(())
    }

    fn obey(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Resize { size, reply } => {
                let resized = self.service.resize(size).map_err(|error| error.to_string());
                if resized.is_ok()
                    && let Some(served) = &self.served
                {
                    served.backend.announce(self.store, self.service)?;
                }
                // Who asked may have gone.
                let _ = reply.try_send(resized);
            }
            Message::Wake => {
                if let Some(served) = &self.served {
                    served.backend.wake();
                }
            }
            Message::Leave { force, reply } => {
                self.replies.extend(reply);
                let now = Instant::now();
                let patience = if force { Duration::ZERO } else { PATIENCE };
                let deadline = now.checked_add(patience).unwrap_or(now);
                match &mut self.leaving {
                    Some(earlier) => *earlier = deadline.min(*earlier),
                    None => {
                        self.leaving = Some(deadline);
                        if let Some(served) = &self.served {
                            served.pair.ask_to_leave(self.control)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Sleeps until somebody has something to say, or the frontend's time is over.
    fn wait(&self) -> Result<(), HostError> {
        let timeout = match self.leaving {
            None => PollTimeout::NONE,
            Some(deadline) => {
                // One more, so as not to wake before it.
                let left = deadline.saturating_duration_since(Instant::now()).as_millis();
                let left = i32::try_from(left.saturating_add(1)).unwrap_or(i32::MAX);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let readable = |fd: BorrowedFd<'a>| PollFd::new(fd, PollFlags::POLLIN);
        let mailbox = PollFd::new(self.mailbox.as_fd(), PollFlags::POLLIN);
        let mut waited = [readable(self.store.as_fd()), readable(self.control.as_fd()), mailbox];
        match poll(&mut waited, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(HostError::new("wait for the store", errno as i32)),
        }
    }
}

/// Takes changes off: that something changed is all they say.
fn drain<S: Watches>(store: &S) -> Result<(), Error> {
    for _ in 0..CHANGES {
        if store.changed()?.is_none() {
            break;
        }
    }
    Ok(())
}
