//! A device's journals: which are gone on with, and when there is none to go on with.
//!
//! Before: `connect`. After: the queues. A journal that is found is gone on with where its ring carries its
//! mark, however the device came to be connected. Where our own state says that the device is in use, that has to be
//! so for each queue, or its frontend has to begin anew: what is owed to it is known to nobody.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hypervisor::memory::{Access, Memory, Using};
use hypervisor::xenbus::Seat;
use hypervisor::{DomId, Error, EventPort, HostError, PAGE_SIZE};

use crate::connect::Connection;
use crate::connect::xenbus::Transport;
use crate::journal::{Identity, Journals, Kept};

/// Requests in a ring's first page, in every layout; each doubling of pages doubles them.
const SLOTS_PER_PAGE: usize = 32;

/// The kernel needs some milliseconds to let go of what a killed process had.
const PATIENCE: Duration = Duration::from_secs(5);

/// The journals of one device.
#[derive(Debug)]
pub struct Keep {
    /// Those of a device of ours are named after it when it is made.
    journals: Mutex<Journals>,
    /// The kind of backend in the path of a device of ours.
    own: Option<&'static str>,
    /// The next connection goes on with journals that were found, or not at all.
    recalled: AtomicBool,
    /// Since when nobody serves the device, until this process does.
    since: Mutex<Option<Instant>>,
}

impl Keep {
    /// Keeps `journals` of a device that nobody has served since `since`.
    #[must_use]
    pub const fn new(journals: Journals, since: Instant) -> Self {
        let since = Mutex::new(Some(since));
        Self { journals: Mutex::new(journals), own: None, recalled: AtomicBool::new(false), since }
    }

    /// Keeps the journals, in `folder`, of devices that we make ourselves, of this `kind`, one after the other. Nobody
    /// has served the first since `since`.
    #[must_use]
    pub fn own(folder: &Path, kind: &'static str, since: Instant) -> Self {
        let journals = Mutex::new(Journals::new(folder, kind));
        let since = Mutex::new(Some(since));
        Self { journals, own: Some(kind), recalled: AtomicBool::new(false), since }
    }

    /// Takes in that the device is `guest`'s, of that number.
    pub(super) fn name(&self, guest: DomId, number: u32) {
        if let Some(kind) = self.own {
            let mut journals = self.journals();
            *journals = journals.named(&format!("{kind}-{guest}-{number}"));
        }
    }

    /// Since when nobody served the device, for who begins to: once.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn journals(&self) -> MutexGuard<'_, Journals> {
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long may be waited for what the process had that served the device before. A connection that
    /// does not go on where our own state says that one is began anew meanwhile.
    pub(super) fn patience(&self, goes_on: bool) -> Duration {
        let recalled = self.recalled.fetch_and(goes_on, Ordering::Relaxed) && goes_on;
        if recalled { PATIENCE } else { Duration::ZERO }
    }

    /// Whether there is a journal of each of the rings that `read` finds, and fits it.
    pub(super) fn recalls<U: Using>(
        &self,
        domain: &U,
        seat: &Seat,
        read: impl FnOnce() -> Result<Transport, Error>,
    ) -> Result<bool, Error> {
        let why = match read().and_then(|transport| self.look(domain, seat, &transport)) {
            Ok(None) => {
                self.recalled.store(true, Ordering::Relaxed);
                return Ok(true);
            }
            Ok(Some(why)) => why,
            Err(Error::Peer(fault)) => fault.to_string(),
            Err(error) => return Err(error),
        };
        tracing::info!(domain = %seat.peer, "its rings cannot be gone on with: {why}");
        Ok(false)
    }

    /// Why not all of the rings can be gone on with, if not.
    fn look<U: Using>(
        &self,
        domain: &U,
        seat: &Seat,
        transport: &Transport,
    ) -> Result<Option<String>, Error> {
        for (queue, number) in transport.queues.iter().zip(0..) {
            let ring = domain.map(seat.peer, &queue.ring, Access::ReadWrite)?;
            let identity = identity(seat, transport, number, ring.len());
            match self.journals().look(&identity, &ring) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Some(format!("queue {number} has no journal"))),
                Err(why) => return Ok(Some(why)),
            }
        }
        Ok(None)
    }

    /// The journal of each queue: that which is there, or else a new one.
    ///
    /// # Errors
    ///
    /// What another process took and owes was known, and is not any more.
    pub(super) fn take_up<M: Memory, C>(
        &self,
        seat: &Seat,
        transport: &Transport,
        connection: &Connection<M, C>,
    ) -> Result<Vec<Option<Kept>>, Error> {
        let recalled = self.recalled.swap(false, Ordering::Relaxed);
        let mut all = Vec::with_capacity(connection.queues.len());
        for (link, number) in connection.queues.iter().zip(0..) {
            let identity = identity(seat, transport, number, link.ring.len());
            let found = self.journals().resume(&identity, &link.ring);
            let why = match found {
                Ok(Some(kept)) => {
                    all.push(Some(kept));
                    continue;
                }
                Ok(None) => "there is none".to_owned(),
                Err(why) => why,
            };
            if recalled {
                let doing = format!("go on with the journal of queue {number}: {why}");
                return Err(HostError::new(doing, libc::ESTALE).into());
            }
            tracing::debug!(queue = number, "a new journal: {why}");
            let kept = self.journals().begin(&identity, &link.ring);
            if let Err(error) = &kept {
                tracing::warn!("no journal is kept, so that a kill is no mere pause: {error}");
            }
            all.push(kept.ok());
        }
        Ok(all)
    }

    /// Removes the journals: the device is no more.
    pub fn remove(&self) {
        self.journals().remove();
    }
}

fn identity(seat: &Seat, transport: &Transport, number: u16, bytes: usize) -> Identity {
    let keys = transport.queues.get(usize::from(number));
    Identity {
        device: seat.own.clone(),
        peer: seat.peer,
        queue: number,
        layout: transport.layout,
        slots: slots(bytes),
        ring: keys.map(|keys| keys.ring.clone()).unwrap_or_default(),
        port: keys.map_or(EventPort(0), |keys| keys.port),
    }
}

/// Requests that a ring of `bytes` bytes has room for.
pub(super) fn slots(bytes: usize) -> u32 {
    u32::try_from((bytes / PAGE_SIZE).saturating_mul(SLOTS_PER_PAGE)).unwrap_or(u32::MAX)
}
