//! From one phase to the next.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::frontend::device::{Device, Ending, Phase, Step, StepOf};
use crate::frontend::{Kind, Platform, Retire as _};
use crate::store::{Store, StoreError, Transaction};
use crate::xenbus::{End, Published, Seat, State, keys};
use crate::{DomId, Error, PeerFault};

impl<H: Platform, K: Kind<H>> Device<H, K> {
    /// What is to be done now.
    ///
    /// # Errors
    ///
    /// The store is gone, or memory for rings cannot be had. What a backend did wrong is no error
    /// here but the device's end.
    pub fn poll(&mut self, platform: &H) -> Result<StepOf<H, K>, Error> {
        if self.phase == Phase::Closed {
            return Ok(Step::Idle);
        }
        match self.advance(platform) {
            Err(Error::Peer(fault)) if self.is_as_seen(platform)? => self.fail(platform, fault),
            // It went, or went on, while its keys were read one after the other: what was found
            // missing or odd is no lie. The store has another change to tell.
            Err(Error::Peer(_)) => Ok(Step::Idle),
            step => step,
        }
    }

    /// Whether the backend still is where, and in the state in which, its keys were read.
    fn is_as_seen(&self, platform: &H) -> Result<bool, Error> {
        let Some(seat) = self.find_seat(platform)? else { return Ok(false) };
        Ok(self.seat.as_ref() == Some(&seat) && seat.peer_state(platform)? == self.seen)
    }

    fn advance(&mut self, platform: &H) -> Result<StepOf<H, K>, Error> {
        if !self.watching {
            platform.watch(&self.own, K::TOKEN)?;
            self.watching = true;
        }
        let Some(seat) = self.find_seat(platform)? else { return self.without_directory(platform) };
        if self.seat.as_ref() != Some(&seat) {
            return self.sit(platform, seat);
        }
        let ours = seat.own_state(platform, Transaction::NONE)?;
        let peers = seat.peer_state(platform)?;
        self.seen = peers;
        if self.phase == Phase::Closing {
            return self.finish_closing(platform, &seat, peers);
        }
        match peers {
            // The toolstack made the device anew: whoever was there is not there any more.
            _ if ours == State::Initialising && self.begun() => self.lose(platform, Phase::Waiting),
            State::Unknown | State::Initialising if self.begun() => {
                self.lose(platform, Phase::Lost)
            }
            State::Unknown | State::Initialising => Ok(Step::Idle),
            State::InitWait | State::Initialised | State::Connected
                if matches!(self.phase, Phase::Waiting | Phase::Lost) =>
            {
                self.begin(platform, &seat, ours, peers)
            }
            State::InitWait if self.phase == Phase::Connected => {
                // It was restarted in its place and asks for a new connection. That we let go of the last one
                // is said first: a backend that goes on with what it finds would find pages that it
                // cannot map any more.
                self.part(platform, &seat)?;
                self.lose(platform, Phase::Lost)
            }
            State::InitWait | State::Initialised => Ok(Step::Idle),
            State::Connected | State::Reconfiguring | State::Reconfigured => {
                self.connected(platform, &seat)
            }
            State::Closing | State::Closed => self.taken_away(platform, &seat, ours, peers),
        }
    }

    /// Closes the device from our side. Poll until its phase is [`Phase::Closed`], which is when
    /// the backend has let go, or give up waiting and [`abandon`](Self::abandon) it.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn close(&mut self, platform: &H) -> Result<StepOf<H, K>, Error> {
        if matches!(self.phase, Phase::Closed | Phase::Closing) {
            return Ok(Step::Idle);
        }
        self.ending = Some(Ending::Closed);
        if let Some(seat) = self.seat.clone()
            && self.begun()
            && seat.publish(platform, &[], State::Closing)? == Published::Done
        {
            self.phase = Phase::Closing;
            self.attached = false;
            return Ok(Step::End(Ending::Closed));
        }
        self.abandon(platform)?;
        Ok(Step::End(Ending::Closed))
    }

    /// Stops waiting for anybody: withdraws what we published, and is over.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn abandon(&mut self, platform: &H) -> Result<(), Error> {
        self.phase = Phase::Closed;
        self.attached = false;
        self.drop_links(platform);
        if let Some(seat) = self.seat.take() {
            withdraw::<H, K>(platform, &seat.own)?;
            // Refused or gone, there is nobody left to be told.
            let _ = seat.publish(platform, &[], State::Closed)?;
            platform.unwatch(&seat.opposite, K::TOKEN)?;
        }
        if core::mem::take(&mut self.watching) {
            platform.unwatch(&self.own, K::TOKEN)?;
        }
        Ok(())
    }

    /// Ends the device because of what the backend did.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn fail(&mut self, platform: &H, fault: PeerFault) -> Result<StepOf<H, K>, Error> {
        if let Some(seat) = &self.seat {
            seat.complain(platform, &fault.to_string())?;
        }
        self.finish(platform, Ending::Fault(fault))
    }

    fn finish(&mut self, platform: &H, ending: Ending) -> Result<StepOf<H, K>, Error> {
        self.ending = Some(ending.clone());
        self.abandon(platform)?;
        Ok(Step::End(ending))
    }

    /// Whether a backend was offered anything of ours.
    fn begun(&self) -> bool {
        matches!(self.phase, Phase::Published | Phase::Connected)
    }

    fn find_seat(&self, platform: &H) -> Result<Option<Seat>, Error> {
        let backend = match platform.read(Transaction::NONE, &key(&self.own, "backend")) {
            Ok(path) => String::from_utf8(path).ok(),
            Err(StoreError::Missing(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let id = match platform.read(Transaction::NONE, &key(&self.own, "backend-id")) {
            Ok(id) => keys::decimal::<u16>(&id).and_then(DomId::new),
            Err(StoreError::Missing(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let (Some(backend), Some(id)) = (backend, id) else { return Ok(None) };
        Ok(Some(Seat::new(End::Front, self.own.clone(), backend, id)))
    }

    /// The toolstack removed our directory: for good if the backend had said goodbye, else we
    /// cannot tell its death from a restart and wait.
    fn without_directory(&mut self, platform: &H) -> Result<StepOf<H, K>, Error> {
        if self.phase == Phase::Closing || (self.seat.is_some() && self.leaving) {
            let ending = self.ending.clone().unwrap_or(Ending::Detached);
            return self.finish(platform, ending);
        }
        if self.begun() { self.lose(platform, Phase::Lost) } else { Ok(Step::Idle) }
    }

    /// Says that the rings that the backend may know are no more, for it to say that it let go of them.
    fn part(&mut self, platform: &H, seat: &Seat) -> Result<(), Error> {
        say_closed::<H, K>(platform, seat)?;
        self.parted = true;
        Ok(())
    }

    /// Turns to the backend at `seat`.
    fn sit(&mut self, platform: &H, seat: Seat) -> Result<StepOf<H, K>, Error> {
        if self.attached {
            return self.lose(platform, Phase::Lost);
        }
        self.drop_links(platform);
        if let Some(former) = self.seat.take() {
            platform.unwatch(&former.opposite, K::TOKEN)?;
        }
        platform.watch(&seat.opposite, K::TOKEN)?;
        self.leaving = false;
        self.turned_down = false;
        self.parted = false;
        self.phase = if self.used { Phase::Lost } else { Phase::Waiting };
        self.seat = Some(seat);
        self.advance(platform)
    }

    /// The backend is gone; what comes next begins anew.
    fn lose(&mut self, platform: &H, phase: Phase) -> Result<StepOf<H, K>, Error> {
        self.drop_links(platform);
        self.phase = if self.used { Phase::Lost } else { phase };
        if core::mem::take(&mut self.attached) { Ok(Step::Detach) } else { Ok(Step::Idle) }
    }

    fn drop_links(&mut self, platform: &H) {
        if let Some(links) = self.links.take() {
            links.retire(platform, &mut self.quarantine);
        }
    }

    /// The backend offers a connection: makes rings and publishes them.
    fn begin(
        &mut self,
        platform: &H,
        seat: &Seat,
        ours: State,
        peers: State,
    ) -> Result<StepOf<H, K>, Error> {
        if peers == State::Connected || peers == State::Initialised {
            // It is, or seems, connected to somebody who was here before us and did not say goodbye.
            // Some backends let go when we begin anew, but all of them when we are closed.
            if !is_apart(ours) {
                say_closed::<H, K>(platform, seat)?;
            }
            return Ok(Step::Idle);
        }
        // A backend may go on with the rings that it finds (Linux's does, when its driver is bound again),
        // and rings that are published with the state that the last ones were in look like those. So
        // it has to see us closed in between, which it says by closing itself.
        if ours == State::Connected {
            self.part(platform, seat)?;
            return Ok(Step::Idle);
        }
        if self.parted && ours == State::Closed {
            return Ok(Step::Idle);
        }
        self.parted = false;
        if !matches!(ours, State::Initialising | State::Unknown)
            && !begin_anew::<H, K>(platform, seat)?
        {
            return Ok(Step::Idle);
        }
        self.leaving = false;
        self.trusted = trusted(platform, &seat.own)?;
        self.quarantine.retry(platform);
        let offer = self.kind.offer(platform, seat)?;
        self.drop_links(platform);
        let made = self.kind.make(platform, seat, &offer, self.used, &mut self.quarantine)?;
        let links = match made {
            Ok(links) => links,
            Err(how) => return self.finish(platform, Ending::Changed(how)),
        };
        let said = self.kind.publication(&links);
        self.links = Some(links);
        let said: Vec<(&str, String)> = said.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        match seat.publish(platform, &said, K::PUBLISHED)? {
            Published::Done => {
                self.offer = Some(offer);
                self.phase = Phase::Published;
            }
            Published::Gone | Published::Refused(_) => self.drop_links(platform),
        }
        Ok(Step::Idle)
    }

    /// The backend is connected: to what we published, or as before with news of the device.
    fn connected(&mut self, platform: &H, seat: &Seat) -> Result<StepOf<H, K>, Error> {
        let published = self.phase == Phase::Published;
        // What a backend offers counts until it is connected, and not after.
        let offer = self.offer.as_mut().filter(|_| published);
        let info = self.kind.info(platform, seat, offer)?;
        if let Some(why) = self.info.as_ref().and_then(|was| K::unlike(was, &info)) {
            return self.finish(platform, Ending::Changed(why));
        }
        if published && let Some(links) = self.links.take() {
            return match seat.publish(platform, &[], State::Connected)? {
                Published::Done => {
                    self.phase = Phase::Connected;
                    self.info = Some(info.clone());
                    self.used = true;
                    self.attached = true;
                    self.turned_down = false;
                    Ok(Step::Attach(links, info))
                }
                Published::Gone | Published::Refused(_) => {
                    self.links = Some(links);
                    self.lose(platform, Phase::Waiting)
                }
            };
        }
        if self.info.as_ref() == Some(&info) {
            return Ok(Step::Idle);
        }
        self.info = Some(info.clone());
        Ok(Step::Update(info))
    }

    /// The backend closes, or is closed already. If it is still meant to be online it can be had again;
    /// else this is the end.
    fn taken_away(
        &mut self,
        platform: &H,
        seat: &Seat,
        ours: State,
        peers: State,
    ) -> Result<StepOf<H, K>, Error> {
        self.leaving = true;
        // As backends read it: what is not said to go stays.
        let online = seat.peer_keys(platform, Transaction::NONE).said("online")?;
        if online == Some(false) {
            return self.finish(platform, Ending::Detached);
        }
        if self.begun() {
            self.turned_down = self.phase == Phase::Published;
            say_closed::<H, K>(platform, seat)?;
            return self.lose(platform, Phase::Waiting);
        }
        // We had lost it before it closed, and it waits until it sees us closed.
        if peers == State::Closing && !is_apart(ours) {
            say_closed::<H, K>(platform, seat)?;
            return Ok(Step::Idle);
        }
        // It was closed with whoever used it last, and offers nothing until we begin anew. Who
        // turned us down is not asked again: it would go round in circles.
        if peers == State::Closed && ours != State::Initialising && !self.turned_down {
            self.parted = false;
            let _ = begin_anew::<H, K>(platform, seat)?;
        }
        Ok(Step::Idle)
    }

    fn finish_closing(
        &mut self,
        platform: &H,
        seat: &Seat,
        peers: State,
    ) -> Result<StepOf<H, K>, Error> {
        if matches!(peers, State::Closing | State::Closed | State::Unknown) {
            debug_assert_eq!(self.seat.as_ref(), Some(seat), "we close where we sit");
            self.abandon(platform)?;
        }
        Ok(Step::Idle)
    }
}

/// Whether a frontend in this state has no rings that a backend could hold on to.
const fn is_apart(ours: State) -> bool {
    matches!(ours, State::Initialising | State::Closed | State::Unknown)
}

/// Withdraws what was published and says that we are closed. Refused or gone, there is nobody to be told.
fn say_closed<H: Platform, K: Kind<H>>(platform: &H, seat: &Seat) -> Result<(), Error> {
    withdraw::<H, K>(platform, &seat.own)?;
    let _ = seat.publish(platform, &[], State::Closed)?;
    Ok(())
}

/// Forgets what our own directory says of an earlier connection, and says that we begin anew. Answers
/// whether there still is such a directory.
fn begin_anew<H: Platform, K: Kind<H>>(platform: &H, seat: &Seat) -> Result<bool, Error> {
    withdraw::<H, K>(platform, &seat.own)?;
    let published = match seat.publish(platform, &[], State::Initialising)? {
        Published::Refused(_) => {
            let _ = seat.publish(platform, &[], State::Closed)?;
            seat.publish(platform, &[], State::Initialising)?
        }
        published => published,
    };
    Ok(published == Published::Done)
}

/// Removes what was published, of this connection or an earlier one with other parameters.
fn withdraw<H: Platform, K: Kind<H>>(store: &H, own: &str) -> Result<(), StoreError> {
    let names = match store.list(Transaction::NONE, own) {
        Ok(names) => names,
        Err(StoreError::Missing(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names.iter().filter(|name| K::publishes(name)) {
        store.remove(Transaction::NONE, &key(own, name))?;
    }
    Ok(())
}

/// Whether the toolstack lets the backend of the device in `own` be trusted. Where it says nothing it
/// does, as the headers have it; where it says anything but 1 it does not.
fn trusted<S: Store + ?Sized>(store: &S, own: &str) -> Result<bool, StoreError> {
    match store.read(Transaction::NONE, &key(own, "trusted")) {
        Ok(value) => Ok(value == b"1"),
        Err(StoreError::Missing(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

fn key(directory: &str, name: &str) -> String {
    alloc::format!("{directory}/{name}")
}
