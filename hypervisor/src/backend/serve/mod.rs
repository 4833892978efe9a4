//! The daemon's loop: one device, for one guest after the other.
//!
//! ```text
//!   wait for the guest ──> make the device ──> settle, wait, settle, ... ──> remove the device ─┐
//!          ^                                        │ asked to leave, or the device is over     │
//!          └───────────── the guest is gone <───────┴──────────────> end <──────────────────────┘
//! ```
//!
//! That is a device of our own ([`made`]). One that a toolstack made is served as long as it stands ([`adopted`]): it is
//! neither made nor removed here, and a daemon that is asked to end leaves it as it is, in order, for the
//! next one to go on with. So it leaves either where it is asked to hand over.
//!
//! Everything that changes the device happens on the thread that calls [`Serving::run`]; others put
//! messages in its [`Mailbox`].

pub mod adopted;
pub mod made;
pub mod status;

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::Error;
use crate::store::Watches;
use crate::xenbus::{Pair, State};

use super::adopt::Adopted;
use super::guest::Guest;
use super::mailbox::{Mailbox, Slot};
use super::settle::{Backend, Settled};
use super::{Kind, Meeting, Platform, Service};

pub use made::Plan;
pub use status::{Board, Ended, Message, Status};

/// How long a frontend that is asked to leave may take, as libxl has it.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The most changes taken from a store's connection before the device is looked at: one look
/// answers any number of them (advisory 349).
const CHANGES: usize = 256;
/// What our watches are registered with.
const TOKEN: &str = "backend";

/// Whose device it is.
enum Subject<O> {
    /// Ours, made as planned for one guest after the other.
    Ours(Arc<Plan<O>>),
    /// A toolstack's.
    Theirs(Adopted, O),
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
    subject: Subject<V::Offer>,
    mailbox: Mailbox<Message<V::Change, V::Changed>>,
    board: Board,
    served: Option<Served<H, V>>,
    /// Whether to end and leave the device as it is.
    pausing: bool,
    /// Until when the frontend may let go of the device by itself.
    leaving: Option<Instant>,
    /// When to look again, though nothing changed.
    resting: Option<Instant>,
    replies: Vec<SyncSender<Result<(), String>>>,
}

impl<'a, H, S, C, V> Serving<'a, H, S, C, V>
where
    H: Platform,
    S: Meeting,
    C: Meeting,
    V: Service<H>,
{
    fn with(
        (domain, store, control, service): (&'a H, &'a S, &'a C, &'a V),
        subject: Subject<V::Offer>,
        mailbox: Mailbox<Message<V::Change, V::Changed>>,
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
            resting: None,
            replies: Vec::new(),
        }
    }

    /// Where messages for the loop are put in.
    #[must_use]
    pub fn slot(&self) -> Slot<Message<V::Change, V::Changed>> {
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
                self.service.release();
            }
        }
        let told = match &ended {
            Ok(_) => Ok(()),
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
            // As long as nobody has anything to say, and the frontend has time.
            let stores = [self.store.as_fd(), self.control.as_fd()];
            let until = self.leaving.into_iter().chain(self.resting).min();
            self.mailbox.wait(&stores, until)?;
            drain(self.store)?;
            drain(self.control)?;
            for message in self.mailbox.take() {
                self.obey(message)?;
            }
        }
    }

    /// Sees to it that there is a device, if one can be.
    fn meet(&mut self) -> Result<Option<Ended>, Error> {
        match &self.subject {
            Subject::Ours(plan) => {
                let plan = Arc::clone(plan);
                self.meet_guest(&plan)
            }
            Subject::Theirs(..) if self.served.is_some() => Ok(None),
            Subject::Theirs(device, offer) => {
                let (device, offer) = (device.clone(), offer.clone());
                self.take(&device, offer)?;
                Ok(None)
            }
        }
    }

    /// Does all that there is to do now.
    fn look(&mut self) -> Result<Option<Ended>, Error> {
        if let Some(ended) = self.meet()? {
            return Ok(Some(ended));
        }
        self.resting = None;
        let Some(served) = &mut self.served else {
            // There is nothing to leave behind.
            return Ok(self.pausing.then_some(Ended::Asked));
        };
        let settled = served.backend.settle(self.domain, self.store, self.service)?;
        if let Settled::Until(when) = settled {
            self.resting = Some(when);
        }
        let (own, peer) = served.backend.states(self.store)?;
        let guest = served.guest.clone();
        {
            let mut status = self.board.lock();
            (status.own, status.peer) = (own, peer);
            status.history = served.backend.history.clone();
        }
        if self.pausing {
            served.backend.pause(self.store)?;
            self.service.stay();
            let asked_for = !self.replies.is_empty();
            return Ok(Some(if asked_for { Ended::HandedOver } else { Ended::Paused }(guest)));
        }
        let overdue = self.leaving.is_some_and(|deadline| Instant::now() >= deadline);
        if settled == Settled::Over || overdue {
            if overdue {
                tracing::warn!(%guest, "did not let go of the device in time; taken away");
            } else if self.leaving.is_some() && self.wait_for_front()? {
                return Ok(None);
            }
            self.let_go()?;
            let asked = self.leaving.is_some();
            return Ok(Some(if asked { Ended::Asked } else { Ended::Detached(guest) }));
        }
        Ok(None)
    }

    /// Lets the device go and removes it, whatever the frontend thinks of it.
    fn let_go(&mut self) -> Result<(), Error> {
        let Some(mut served) = self.served.take() else { return Ok(()) };
        for key in watched(&served.pair, V::KIND) {
            // A watch that is no more needs no removing; a store that is no more shows soon.
            let _ = self.store.unwatch(&key, TOKEN);
        }
        served.backend.detach();
        if matches!(self.subject, Subject::Ours(_)) {
            served.backend.close(self.store)?;
            let _ = served.pair.remove(self.control, true)?;
            tracing::info!(guest = %served.guest, "device removed");
        }
        self.service.release();
        let mut status = self.board.lock();
        (status.guest, status.own, status.peer) = (None, State::Unknown, State::Unknown);
        status.history = served.backend.history.clone();
        Ok(())
    }

    /// Has everything told that the device's life depends on.
    fn watch(&self, pair: &Pair) -> Result<(), Error> {
        for key in watched(pair, V::KIND) {
            self.store.watch(&key, TOKEN)?;
        }
        Ok(())
    }

    fn obey(&mut self, message: Message<V::Change, V::Changed>) -> Result<(), Error> {
        match message {
            Message::Change { change, reply } => {
                let changed = self.service.change(change).map_err(|error| error.to_string());
                if changed.is_ok()
                    && let Some(served) = &self.served
                {
                    served.backend.announce(self.store, self.service)?;
                }
                // Who asked may have gone.
                let _ = reply.try_send(changed);
            }
            Message::Wake { reply } => {
                if let Some(served) = &self.served {
                    served.backend.wake();
                    served.backend.leave_changed(self.store, self.service)?;
                }
                // Who asked may have gone.
                let _ = reply.try_send(Ok(()));
            }
            Message::HandOver { reply } => {
                self.pausing = true;
                self.replies.push(reply);
            }
            Message::Leave { reply, .. } if let Subject::Theirs(device, _) = &self.subject => {
                match reply {
                    None => self.pausing = true,
                    // Who asked may have gone.
                    Some(reply) => drop(reply.try_send(Err(adopted::not_ours(V::KIND, device)))),
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
}

/// What is looked at when a device's own states are.
fn watched(pair: &Pair, kind: &Kind) -> Vec<String> {
    let (front, back) = (&pair.front.directory, &pair.back.directory);
    let mut keys = Vec::new();
    for key in ["state", "online"] {
        keys.extend([format!("{front}/{key}"), format!("{back}/{key}")]);
    }
    keys.extend(kind.live.iter().map(|key| format!("{back}/{key}")));
    keys.extend(kind.wishes.iter().map(|key| format!("{front}/{key}")));
    keys
}

/// Takes changes off: that something changed is all they say.
///
/// # Errors
///
/// The store is gone.
pub fn drain<S: Watches + ?Sized>(store: &S) -> Result<(), Error> {
    for _ in 0..CHANGES {
        if store.changed()?.is_none() {
            break;
        }
    }
    Ok(())
}
