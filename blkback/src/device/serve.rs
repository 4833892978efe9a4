//! The daemon's loop: one disk, for one guest after the other.
//!
//! ```text
//!   wait for the guest ──> make the device ──> settle, wait, settle, ... ──> remove the device ─┐
//!          ^                                        │ asked to leave, or the device is over     │
//!          └───────────── the guest is gone <───────┴──────────────> end <──────────────────────┘
//! ```
//!
//! A device that a toolstack made is served as long as it stands ([`Serving::adopt`]): it is neither
//! made nor removed here, and a daemon that is asked to end leaves it as it is, in order, for the
//! next one to go on with.
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
use crate::device::adopt::Adopted;
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
    /// Take the disk away from the guest, and end. A toolstack's device is left as it is, and who
    /// asked with a `reply` is told to ask the toolstack.
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

/// Whose device it is.
enum Subject {
    /// Ours, made as planned for one guest after the other.
    Ours(Plan),
    /// A toolstack's.
    Theirs(Adopted, Offer),
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
    /// It was asked to, and left the device in order for the next backend to go on with.
    Paused(Guest),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("detached"),
            Self::Detached(guest) => write!(f, "the disk was taken away from {guest}"),
            Self::Gone(wanted) => write!(f, "domain {wanted} is gone"),
            Self::Paused(guest) => {
                write!(f, "left as it is: {guest} waits for the next blkback --device or --watch")
            }
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
    subject: Subject,
    mailbox: Mailbox<Message>,
    board: Board,
    served: Option<Served<H, V>>,
    /// Whether to end and leave the device as it is.
    pausing: bool,
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
        let mailbox = Mailbox::new()?;
        let parts = (domain, store, control, service);
        Ok(Self::with(parts, Subject::Ours(plan), mailbox))
    }

    /// Serves `service` at `device`, which a toolstack made, and offers `offer` there. What is put
    /// in `mailbox` is taken from then on.
    pub fn adopt(
        domain: &'a H,
        store: &'a S,
        control: &'a C,
        service: &'a V,
        (device, offer): (Adopted, Offer),
        mailbox: Mailbox<Message>,
    ) -> Self {
        Self::with((domain, store, control, service), Subject::Theirs(device, offer), mailbox)
    }

    fn with(
        (domain, store, control, service): (&'a H, &'a S, &'a C, &'a V),
        subject: Subject,
        mailbox: Mailbox<Message>,
    ) -> Self {
        Self {
            domain,
            store,
            control,
            service,
            subject,
            mailbox,
            board: Board::new(),
            served: None,
            pausing: false,
            leaving: None,
            replies: Vec::new(),
        }
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
            if matches!(self.subject, Subject::Ours(_)) {
                let _ = served.backend.close(self.store);
                let _ = served.pair.remove(self.control, true);
            }
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
        if let Some(ended) = self.meet()? {
            return Ok(Some(ended));
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
        if self.pausing {
            served.backend.pause(self.store)?;
            return Ok(Some(Ended::Paused(guest)));
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

    /// Sees to it that there is a device, if one can be.
    fn meet(&mut self) -> Result<Option<Ended>, Error> {
        let plan = match &self.subject {
            Subject::Ours(plan) => plan.clone(),
            Subject::Theirs(device, offer) => {
                if self.served.is_none() {
                    let (device, offer) = (device.clone(), *offer);
                    self.take(&device, offer)?;
                }
                return Ok(None);
            }
        };
        if let Some(served) = &self.served
            && !guest::lives(self.control, served.guest.id)?
        {
            self.let_go()?;
            if matches!(plan.wanted, Wanted::Id(_)) && self.leaving.is_none() {
                return Ok(Some(Ended::Gone(plan.wanted)));
            }
        }
        if self.served.is_none() {
            if self.leaving.is_some() {
                return Ok(Some(Ended::Asked));
            }
            if let Some(guest) = plan.wanted.find(self.control)? {
                self.begin(guest, &plan)?;
            }
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
    fn begin(&mut self, guest: Guest, plan: &Plan) -> Result<(), Error> {
        let pair = match toolstack::make(self.control, plan.me, &guest, &plan.order) {
            Ok(pair) => pair,
            // It came and went: its directories cannot be its own.
            Err(_) if !guest::lives(self.control, guest.id)? => return Ok(()),
            Err(error) => return Err(error),
        };
        for key in watched(&pair) {
            self.store.watch(&key, TOKEN)?;
        }
        tracing::info!(%guest, vdev = %plan.order.vdev, "device made");
        let history = self.board.read().history;
        self.board.lock().guest = Some(guest.clone());
        let backend = Backend::new(&pair, plan.offer, self.mailbox.waker(), history);
        self.served = Some(Served { guest, pair, backend });
        Ok(())
    }

    /// Takes over a toolstack's device.
    fn take(&mut self, device: &Adopted, offer: Offer) -> Result<(), Error> {
        let pair = device.pair.clone();
        for key in watched(&pair) {
            self.store.watch(&key, TOKEN)?;
        }
        self.store.watch(&format!("{}/hotplug-status", pair.back.directory), TOKEN)?;
        let (guest, waker) = (device.guest.clone(), self.mailbox.waker());
        let backend = Backend::adopt(self.store, &pair, device.hotplug, offer, waker)?;
        tracing::info!(%guest, vdev = %device.vdev, device = %device.spot, "device taken over");
        self.board.lock().guest = Some(guest.clone());
        self.served = Some(Served { guest, pair, backend });
        Ok(())
    }

    /// Lets the device go and removes it, whatever the frontend thinks of it.
    fn let_go(&mut self) -> Result<(), Error> {
        let Some(mut served) = self.served.take() else { return Ok(()) };
        for key in watched(&served.pair) {
            // A watch that is no more needs no removing; a store that is no more shows soon.
            let _ = self.store.unwatch(&key, TOKEN);
        }
        served.backend.detach();
        if matches!(self.subject, Subject::Ours(_)) {
            served.backend.close(self.store)?;
            let _ = served.pair.remove(self.control, true)?;
            tracing::info!(guest = %served.guest, "device removed");
        }
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
            Message::Leave { reply, .. } if let Subject::Theirs(device, _) = &self.subject => {
                match reply {
                    None => self.pausing = true,
                    // Who asked may have gone.
                    Some(reply) => drop(reply.try_send(Err(not_ours(device)))),
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

/// What is looked at when a device's own states are.
fn watched(pair: &Pair) -> [String; 4] {
    let (front, back) = (&pair.front.directory, &pair.back.directory);
    [
        format!("{front}/state"),
        format!("{front}/online"),
        format!("{back}/state"),
        format!("{back}/online"),
    ]
}

/// Why a toolstack's device is not taken away here, and how it is.
fn not_ours(device: &Adopted) -> String {
    format!(
        "a toolstack gave this disk to {}; have it take it away: xl block-detach {} {}",
        device.guest, device.guest.id, device.vdev
    )
}

/// Takes changes off: that something changed is all they say.
pub(crate) fn drain<S: Watches>(store: &S) -> Result<(), Error> {
    for _ in 0..CHANGES {
        if store.changed()?.is_none() {
            break;
        }
    }
    Ok(())
}
