//! From one phase to the next.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypervisor::store::{StoreError, Transaction};
use hypervisor::xenbus::{End, Published, Seat, State, keys};
use hypervisor::{DomId, Error, PeerFault};

use crate::device::{Device, Ending, Phase, Platform, Step};
use crate::link::Link;
use crate::negotiate::{self, DiskInfo, MOST_RING_ORDER, Offer, QueueKeys};

/// What every watch of a device is registered with.
const TOKEN: &str = "blkfront";

impl<H: Platform> Device<H> {
    /// What is to be done now.
    ///
    /// # Errors
    ///
    /// The store is gone, or memory for rings cannot be had. What a backend did wrong is no error
    /// here but the device's end.
    pub fn poll(&mut self, platform: &H) -> Result<Step<H>, Error> {
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

    fn advance(&mut self, platform: &H) -> Result<Step<H>, Error> {
        if !self.watching {
            platform.watch(&self.own, TOKEN)?;
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
                // It was restarted in its place and asks for a new connection.
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
    pub fn close(&mut self, platform: &H) -> Result<Step<H>, Error> {
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
            negotiate::withdraw(platform, &seat.own)?;
            // Refused or gone, there is nobody left to be told.
            let _ = seat.publish(platform, &[], State::Closed)?;
            platform.unwatch(&seat.opposite, TOKEN)?;
        }
        if core::mem::take(&mut self.watching) {
            platform.unwatch(&self.own, TOKEN)?;
        }
        Ok(())
    }

    /// Ends the device because of what the backend did.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn fail(&mut self, platform: &H, fault: PeerFault) -> Result<Step<H>, Error> {
        if let Some(seat) = &self.seat {
            seat.complain(platform, &fault.to_string())?;
        }
        self.finish(platform, Ending::Fault(fault))
    }

    fn finish(&mut self, platform: &H, ending: Ending) -> Result<Step<H>, Error> {
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
    fn without_directory(&mut self, platform: &H) -> Result<Step<H>, Error> {
        if self.phase == Phase::Closing || (self.seat.is_some() && self.leaving) {
            let ending = self.ending.clone().unwrap_or(Ending::Detached);
            return self.finish(platform, ending);
        }
        if self.begun() { self.lose(platform, Phase::Lost) } else { Ok(Step::Idle) }
    }

    /// Turns to the backend at `seat`.
    fn sit(&mut self, platform: &H, seat: Seat) -> Result<Step<H>, Error> {
        if self.attached {
            return self.lose(platform, Phase::Lost);
        }
        self.drop_links(platform);
        if let Some(former) = self.seat.take() {
            platform.unwatch(&former.opposite, TOKEN)?;
        }
        platform.watch(&seat.opposite, TOKEN)?;
        self.leaving = false;
        self.turned_down = false;
        self.phase = if self.queues.is_some() { Phase::Lost } else { Phase::Waiting };
        self.seat = Some(seat);
        self.advance(platform)
    }

    /// The backend is gone; what comes next begins anew.
    fn lose(&mut self, platform: &H, phase: Phase) -> Result<Step<H>, Error> {
        self.drop_links(platform);
        self.phase = if self.queues.is_some() { Phase::Lost } else { phase };
        if core::mem::take(&mut self.attached) { Ok(Step::Detach) } else { Ok(Step::Idle) }
    }

    fn drop_links(&mut self, platform: &H) {
        for link in core::mem::take(&mut self.links) {
            link.retire(platform, &mut self.quarantine);
        }
    }

    /// The backend offers a connection: makes rings and publishes them.
    fn begin(
        &mut self,
        platform: &H,
        seat: &Seat,
        ours: State,
        peers: State,
    ) -> Result<Step<H>, Error> {
        if peers == State::Connected || peers == State::Initialised {
            // It is, or seems, connected to somebody who was here before us and did not say goodbye.
            // Some backends let go when we begin anew, but all of them when we are closed.
            if !matches!(ours, State::Initialising | State::Closed | State::Unknown) {
                negotiate::withdraw(platform, &seat.own)?;
                let _ = seat.publish(platform, &[], State::Closed)?;
            }
            return Ok(Step::Idle);
        }
        if !matches!(ours, State::Initialising | State::Unknown) && !begin_anew(platform, seat)? {
            return Ok(Step::Idle);
        }
        self.leaving = false;
        self.trusted = negotiate::trusted(platform, &seat.own)?;
        self.quarantine.retry(platform);
        let offer = Offer::read(platform, seat)?;
        let order = self.config.ring_order.min(offer.ring_order).min(MOST_RING_ORDER);
        let count = self.config.queues.max(1).min(offer.queues) as usize;
        let count = match self.queues {
            Some(queues) if queues > count => {
                let how = alloc::format!("it offers {count} queues where {queues} are in use");
                return self.finish(platform, Ending::Changed(how));
            }
            Some(queues) => queues,
            None => count,
        };
        self.drop_links(platform);
        for _ in 0..count {
            let (segments, pages) = (offer.segments(), self.config.pool_pages);
            let link = Link::new(platform, seat, order, segments, pages, &mut self.quarantine)?;
            self.links.push(link);
        }
        let queues: Vec<QueueKeys> = self.links.iter().map(Link::keys).collect();
        let said = negotiate::publication(&queues);
        let said: Vec<(&str, String)> = said.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        match seat.publish(platform, &said, State::Initialised)? {
            Published::Done => {
                self.offer = Some(offer);
                self.phase = Phase::Published;
            }
            Published::Gone | Published::Refused(_) => self.drop_links(platform),
        }
        Ok(Step::Idle)
    }

    /// The backend is connected: to what we published, or as before with news of the disk.
    fn connected(&mut self, platform: &H, seat: &Seat) -> Result<Step<H>, Error> {
        let info = DiskInfo::read(platform, seat)?;
        if self.phase == Phase::Published {
            // Linux's says only now whether it keeps grants mapped.
            if let Some(offer) = &mut self.offer {
                offer.persistent = Offer::read(platform, seat)?.persistent;
            }
            if let Some(why) = self.info.and_then(|was| unlike(&was, &info)) {
                return self.finish(platform, Ending::Changed(why));
            }
            return match seat.publish(platform, &[], State::Connected)? {
                Published::Done => {
                    self.phase = Phase::Connected;
                    self.info = Some(info);
                    self.queues = Some(self.links.len());
                    self.attached = true;
                    self.turned_down = false;
                    Ok(Step::Attach(core::mem::take(&mut self.links), info))
                }
                Published::Gone | Published::Refused(_) => self.lose(platform, Phase::Waiting),
            };
        }
        if self.info == Some(info) {
            return Ok(Step::Idle);
        }
        if let Some(why) = self.info.and_then(|was| unlike(&was, &info)) {
            return self.finish(platform, Ending::Changed(why));
        }
        self.info = Some(info);
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
    ) -> Result<Step<H>, Error> {
        self.leaving = true;
        let online = seat.peer_keys(platform, Transaction::NONE).flag("online")?;
        if !online {
            return self.finish(platform, Ending::Detached);
        }
        if self.begun() {
            self.turned_down = self.phase == Phase::Published;
            negotiate::withdraw(platform, &seat.own)?;
            let _ = seat.publish(platform, &[], State::Closed)?;
            return self.lose(platform, Phase::Waiting);
        }
        // It was closed with whoever used it last, and offers nothing until we begin anew. Who
        // turned us down is not asked again: it would go round in circles.
        if peers == State::Closed && ours != State::Initialising && !self.turned_down {
            let _ = begin_anew(platform, seat)?;
        }
        Ok(Step::Idle)
    }

    fn finish_closing(
        &mut self,
        platform: &H,
        seat: &Seat,
        peers: State,
    ) -> Result<Step<H>, Error> {
        if matches!(peers, State::Closing | State::Closed | State::Unknown) {
            debug_assert_eq!(self.seat.as_ref(), Some(seat), "we close where we sit");
            self.abandon(platform)?;
        }
        Ok(Step::Idle)
    }
}

/// Forgets what our own directory says of an earlier connection, and says that we begin anew. Answers
/// whether there still is such a directory.
fn begin_anew<H: Platform>(platform: &H, seat: &Seat) -> Result<bool, Error> {
    negotiate::withdraw(platform, &seat.own)?;
    let published = match seat.publish(platform, &[], State::Initialising)? {
        Published::Refused(_) => {
            let _ = seat.publish(platform, &[], State::Closed)?;
            seat.publish(platform, &[], State::Initialising)?
        }
        published => published,
    };
    Ok(published == Published::Done)
}

/// How a disk differs from what it was such that requests made for that cannot be done on it.
fn unlike(was: &DiskInfo, is: &DiskInfo) -> Option<String> {
    if is.sector_size > was.sector_size {
        let (was, is) = (was.sector_size, is.sector_size);
        return Some(alloc::format!("its sectors have {is} bytes where they had {was}"));
    }
    if is.read_only && !was.read_only {
        return Some("it may only be read now".into());
    }
    None
}

fn key(directory: &str, name: &str) -> String {
    alloc::format!("{directory}/{name}")
}
