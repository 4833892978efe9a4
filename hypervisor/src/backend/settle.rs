//! The backend's end of one device.
//!
//! [`Backend::settle`] looks at the store, does what [`lifecycle`] says, and looks
//! again until there is nothing to do. A frontend that breaks the protocol loses its connection:
//! the reason is written to `error`, kept for whoever asks, and counted, and it must begin anew
//! before it is served again.

use std::time::Instant;

use crate::Error;
use crate::store::{StoreError, Transaction, Transactions};
use crate::xenbus::{End, Pair, Published, Seat, State};

use super::history::{History, Words};
use super::hotplug::{self, Hotplug};
use super::lifecycle::{self, Seen, Step};
use super::ration::Ration;
use super::{Kind, Offer as _, Platform, Running, Service, Waker};

/// The most steps between two waits. What a frontend changes meanwhile is told by its watch, so a
/// frontend that changes without end gets this much of our time for each change.
const STEPS: usize = 16;

/// Whether a device is to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a device that is over must be let go"]
pub enum Settled {
    /// When something changes.
    Waiting,
    /// Then at the latest.
    Until(Instant),
    /// Never: it is over.
    Over,
}

/// The backend's end of one device.
pub struct Backend<H: Platform, V: Service<H>> {
    seat: Seat,
    offer: V::Offer,
    waker: Waker,
    running: Option<V::Running>,
    barred: bool,
    /// Who else has a say in a device that a toolstack made; `None` where we made it.
    hotplug: Option<Hotplug>,
    paused: bool,
    offered: bool,
    /// What a guest that comes again and again may yet cause.
    pub(super) words: Words,
    pub(super) comings: Ration,
    /// What was last said of an end, where the guest sees it.
    complaint: String,
    /// What has happened so far.
    pub history: History,
}

impl<H: Platform, V: Service<H>> Backend<H, V> {
    /// The backend's end of `pair`, which offers `offer`.
    #[must_use]
    pub fn new(pair: &Pair, offer: V::Offer, waker: Waker, history: History) -> Self {
        let seat = pair.seat(End::Back);
        Self {
            seat,
            offer,
            waker,
            running: None,
            barred: false,
            hotplug: None,
            paused: false,
            offered: false,
            words: Words::new(Ration::of_words(Instant::now())),
            comings: Ration::of_steps(Instant::now()),
            complaint: String::new(),
            history,
        }
    }

    /// The backend's end of a `pair` that is there, in whichever state it is: with `hotplug`, where a toolstack
    /// made it.
    ///
    /// # Errors
    ///
    /// The store is gone, or the host cannot look at what a backend before us left.
    pub fn adopt<S: Transactions + ?Sized>(
        (domain, service): (&H, &V),
        store: &S,
        pair: &Pair,
        hotplug: Option<Hotplug>,
        offer: V::Offer,
        waker: Waker,
    ) -> Result<Self, Error> {
        let mut backend = Self::new(pair, offer.clone(), waker, History::default());
        backend.hotplug = hotplug;
        if let Some(changed) = hotplug::changed(&backend.seat, store)? {
            service.restore(&changed);
        }
        backend.paused = hotplug::take_up(&backend.seat, store)?;
        let (own, peer) = backend.states(store)?;
        backend.paused |= V::KIND.resumes && own == State::Connected;
        if (own, peer) == (State::Connected, State::Connected) {
            let offered = offer.after(&backend.seat, store)?;
            backend.paused |= service.recalls(domain, &backend.seat, store, &offered)?;
        }
        if own == State::InitWait || backend.paused {
            // Somebody was here before us, and the frontend may have chosen from what that one
            // offered.
            backend.offer = offer.after(&backend.seat, store)?;
            if own == State::InitWait && matches!(peer, State::Initialising | State::InitWait) {
                backend.offer = offer;
                // Gone or asked for something else meanwhile, the first look sees that.
                let _ = backend.publish_offer(store)?;
            } else if own == State::InitWait
                && let Some(keys) = hotplug.map(Hotplug::accepted).filter(|keys| !keys.is_empty())
            {
                // The frontend was faster than the script, which waits all the same.
                let _ = backend.seat.publish(store, &keys, own)?;
            }
            backend.offered = true;
        }
        Ok(backend)
    }

    /// Whether the rings of a backend before this one can be gone on with.
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        self.paused
    }

    /// Leaves word of what was changed for the process after this one.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn leave_changed<S>(&self, store: &S, service: &V) -> Result<(), Error>
    where
        S: Transactions + ?Sized,
    {
        match service.changed() {
            Some(changed) => hotplug::leave_changed(&self.seat, store, &changed),
            None => Ok(()),
        }
    }

    /// Has what serves the frontend look at limits and sizes again.
    pub fn wake(&self) {
        if let Some(running) = &self.running {
            running.wake();
        }
    }

    /// Our state and the frontend's, as the store has them.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn states<S: Transactions + ?Sized>(&self, store: &S) -> Result<(State, State), Error> {
        Ok((self.seat.own_state(store, Transaction::NONE)?, self.seat.peer_state(store)?))
    }

    /// Does all that there is to do.
    ///
    /// # Errors
    ///
    /// The store is gone. What the frontend did wrong is no error here.
    pub fn settle<S>(&mut self, domain: &H, store: &S, service: &V) -> Result<Settled, Error>
    where
        S: Transactions + ?Sized,
    {
        for _ in 0..STEPS {
            if let Some(error) = self.running.as_mut().and_then(Running::failed) {
                self.give_up(store, &error)?;
            }
            if let Err(error) = self.reread(store) {
                self.give_up(store, &error)?;
            }
            let (own, peer) = self.states(store)?;
            if self.hotplug.is_some() && self.offered && own == State::Initialising {
                // The toolstack made another device here: it is not for us to say what it is.
                self.detach();
                return Ok(Settled::Over);
            }
            if matches!(peer, State::Unknown | State::Initialising | State::Closed) {
                self.barred = false;
            }
            let online = self.online(store)?;
            let attached = self.running.is_some();
            let ready = self.ready(store)?;
            let Kind { reconfigures, connects_early, .. } = *V::KIND;
            let (barred, paused) = (self.barred, self.paused);
            let seen = Seen {
                own,
                peer,
                online,
                attached,
                barred,
                ready,
                paused,
                reconfigures,
                connects_early,
            };
            let step = lifecycle::next(seen);
            tracing::debug!(?seen, ?step, device = self.seat.own, "step");
            if matches!(step, Step::Offer | Step::Connect)
                && let Err(until) = self.comings.take(Instant::now())
            {
                self.history.delays = self.history.delays.saturating_add(1);
                return Ok(Settled::Until(until));
            }
            match step {
                Step::Wait => {
                    // It went on and came back to Reconfiguring before we looked.
                    if (own, peer) == (State::Reconfigured, State::Reconfiguring)
                        && let Err(error) = self.reconfigure(store)
                    {
                        self.give_up(store, &error)?;
                    }
                    if self.moved(store, own, peer)? {
                        // There is nobody any more on the rings that we hold: the next look takes up
                        // those that the frontend came back with.
                        self.detach();
                        self.paused = true;
                        continue;
                    }
                    return Ok(Settled::Waiting);
                }
                Step::Leave => return Ok(Settled::Over),
                Step::Detach => self.detach(),
                Step::Reconfigure => {
                    if let Err(error) = self.reconfigure(store) {
                        self.give_up(store, &error)?;
                    }
                }
                Step::Resume => {
                    // What else happened to the device meanwhile is seen on the next round.
                    let described = service.describe(&self.offer);
                    let _ = self.seat.publish(store, &described, State::Connected)?;
                }
                Step::Offer | Step::Closing | Step::Closed => {
                    // Whoever was connected here died: what it had taken and not answered is known
                    // to nobody, so the frontend has to come with new rings. Unless it was us: then the
                    // rings that we let go are not those that the frontend has by now.
                    let died = own == State::Connected && !self.paused && !self.offered;
                    self.barred |= step == Step::Offer && died;
                    self.paused = false;
                    let published = match step {
                        Step::Offer => self.publish_offer(store)?,
                        Step::Closing => self.seat.publish(store, &[], State::Closing)?,
                        _ => self.seat.publish(store, &[], State::Closed)?,
                    };
                    // A state that somebody else gave us and that leads nowhere. Whether our
                    // directory is gone, or has another state by now, is seen on the next round.
                    if published == Published::Refused(own) {
                        return Ok(Settled::Waiting);
                    }
                }
                Step::Connect => {
                    self.paused = false;
                    if let Err(error) = self.connect(domain, store, service) {
                        self.give_up(store, &error)?;
                    }
                }
            }
        }
        // Come back, after others had their turn.
        self.waker.wake();
        Ok(Settled::Waiting)
    }

    /// Tells the frontend that the device is not as it was.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn announce<S>(&self, store: &S, service: &V) -> Result<(), Error>
    where
        S: Transactions + ?Sized,
    {
        if self.running.is_some()
            && self.seat.own_state(store, Transaction::NONE)? == State::Connected
        {
            // Gone or closing, the frontend has no use for it.
            let described = service.describe(&self.offer);
            let _ = self.seat.publish(store, &described, State::Connected)?;
        }
        Ok(())
    }

    /// Finishes and answers what is under way, and lets the rings go.
    pub fn detach(&mut self) {
        if let Some(running) = self.running.take() {
            running.finish();
        }
    }

    /// Finishes and answers what is under way, and leaves the frontend its rings and its state, for
    /// the next backend to go on with: the frontend waits as for a slow device.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn pause<S: Transactions + ?Sized>(&mut self, store: &S) -> Result<(), Error> {
        if let Some(running) = self.running.take()
            && running.leave()
        {
            hotplug::leave_paused(&self.seat, store)?;
        }
        Ok(())
    }

    /// Says Closed, whatever the frontend thinks of it.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn close<S: Transactions + ?Sized>(&mut self, store: &S) -> Result<(), Error> {
        self.detach();
        // Gone is closed as well.
        let _ = self.seat.publish(store, &[], State::Closed)?;
        Ok(())
    }

    fn publish_offer<S>(&mut self, store: &S) -> Result<Published, Error>
    where
        S: Transactions + ?Sized,
    {
        self.offered = true;
        let mut keys = self.offer.keys();
        keys.extend(self.hotplug.map(Hotplug::accepted).unwrap_or_default());
        Ok(self.seat.publish(store, &keys, State::InitWait)?)
    }

    /// Whether whatever prepares the device is done.
    fn ready<S: Transactions + ?Sized>(&self, store: &S) -> Result<bool, Error> {
        match self.hotplug {
            Some(hotplug) => hotplug.is_done(&self.seat, store),
            None => Ok(true),
        }
    }

    fn connect<S>(&mut self, domain: &H, store: &S, service: &V) -> Result<(), Error>
    where
        S: Transactions + ?Sized,
    {
        let (seat, waker) = (&self.seat, self.waker.clone());
        let running = service.connect(domain, seat, store, &self.offer, waker)?;
        let described = service.describe(&self.offer);
        match self.seat.publish(store, &described, State::Connected) {
            Ok(Published::Done) => {
                self.running = Some(running);
                self.barred = false;
                self.history.connections = self.history.connections.saturating_add(1);
                if self.history.may_say(&mut self.words) {
                    tracing::info!(domain = %self.seat.peer, "connected");
                }
                Ok(())
            }
            // The toolstack took the device away in this moment: the next look sees that.
            Ok(_) => {
                running.finish();
                Ok(())
            }
            Err(error) => {
                running.finish();
                Err(error.into())
            }
        }
    }

    /// Looks at what may change while the device is in use.
    fn reread<S: Transactions + ?Sized>(&mut self, store: &S) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if V::KIND.live.is_empty() && V::KIND.wishes.is_empty() {
            return Ok(());
        }
        running.reread(&self.seat, store)
    }

    /// Whether the frontend went and came back with other rings before we looked once.
    fn moved<S>(&self, store: &S, own: State, peer: State) -> Result<bool, Error>
    where
        S: Transactions + ?Sized,
    {
        let published = match peer {
            State::Connected => true,
            State::Initialised => V::KIND.connects_early,
            _ => false,
        };
        match &self.running {
            Some(running) if own == State::Connected && published => {
                Ok(!running.is_current(&self.seat, store)?)
            }
            _ => Ok(false),
        }
    }

    /// Has the frontend's keys read again, and says so.
    fn reconfigure<S: Transactions + ?Sized>(&mut self, store: &S) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Ok(()) };
        running.reconfigure(&self.seat, store)?;
        // What else happened to the device meanwhile is seen on the next round.
        let _ = self.seat.publish(store, &[], State::Reconfigured)?;
        Ok(())
    }

    /// Ends the connection for a reason, and says so, where not too much has been said.
    fn give_up<S>(&mut self, store: &S, error: &Error) -> Result<(), Error>
    where
        S: Transactions + ?Sized,
    {
        self.detach();
        self.barred = true;
        self.history.ended(error);
        let complaint = error.to_string();
        if self.history.may_say(&mut self.words) {
            tracing::warn!(domain = %self.seat.peer, "connection ended: {error}");
            if complaint != self.complaint {
                self.seat.complain(store, &complaint)?;
                self.complaint = complaint;
            }
        }
        let _ = self.seat.publish(store, &[], State::Closed)?;
        Ok(())
    }

    /// Whether the toolstack means the device to stay. What is not said is meant so.
    fn online<S: Transactions + ?Sized>(&self, store: &S) -> Result<bool, Error> {
        match store.read(Transaction::NONE, &format!("{}/online", self.seat.own)) {
            Ok(value) => Ok(value != b"0"),
            Err(StoreError::Missing(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

impl<H: Platform, V: Service<H>> Drop for Backend<H, V> {
    fn drop(&mut self) {
        // Never leave a queue's thread behind.
        self.detach();
    }
}
