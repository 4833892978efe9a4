//! What serves a connection: a thread for each queue, over one medium.
//!
//! The medium, its limits and whether its flushes can still be believed outlive connections; rings,
//! threads and engines do not.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::backend::{Guest, Key, Kind, Platform, Running, Service, Waker};
use hypervisor::event::Channel;
use hypervisor::memory::Memory;
use hypervisor::store::{Store, Transaction};
use hypervisor::xenbus::{Seat, State};
use hypervisor::{ConfigError, Error};
use ring::Waiting;

use crate::connect::Connection;
use crate::connect::xenbus::{self, Discard, Disk, Offer, Transport};
use crate::control::{Counters, Ring};
use crate::device::keep::{Keep, slots};
use crate::device::{KIND, Resize};
use crate::engine::Medium;
use crate::image::{Image, Present};
use crate::journal::Kept;
use crate::policy::acquire::{Mapping, Reach};
use crate::queue::{self, Command, Ended, Handle, OnError, Parts, Serving, Stalls};
use crate::stats::{Snapshot, Stats};
use crate::throttle::Limits;
use crate::validate::Rules;

/// Bytes in the units of the ring's sector numbers.
const SECTOR: u64 = 512;

/// A medium and those who serve it.
#[derive(Debug)]
pub struct Disks {
    pub(super) medium: Medium,
    pub(super) manner: Manner,
    image: Option<Image>,
    pub(super) serving: Arc<Serving>,
    pub(super) counted: Arc<Mutex<Counted>>,
    keep: Option<Keep>,
}

/// What a disk is to look like, whatever lies behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// A compact disc's drive.
    pub cdrom: bool,
    /// One whose medium can be taken out.
    pub removable: bool,
    /// One that forgets nothing: discarding is not offered.
    pub keeps_all: bool,
}

/// What was and is counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// The connection that is served: of each queue its counters and its ring's slots.
    pub(super) now: Vec<(Arc<Stats>, u32)>,
    /// All earlier ones together.
    pub(super) before: Snapshot,
    /// What moved bytes last.
    pub(super) engine: Option<&'static str>,
    /// Connections that were gone on with after another process had served them.
    resumed: u64,
    /// How long the last of them was served by nobody.
    pause: Option<Duration>,
}

/// How a medium is to be served.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Policy {
    /// The most requests a second.
    pub iops: Option<u64>,
    /// The most bytes a second.
    pub bytes: Option<u64>,
    /// How queues wait for work.
    pub waiting: Waiting,
    /// How guest pages are reached; by the frontend's features where nothing is said.
    pub reach: Option<Reach>,
    /// What it costs to map them for a single request.
    pub mapping: Mapping,
    /// What the disk is to look like.
    pub manner: Manner,
    /// What is done about a request that the medium refuses.
    pub on_error: OnError,
}

impl Disks {
    /// Serves `medium`, which is `image` where there is one, as `policy` says.
    #[must_use]
    pub fn new(medium: Medium, image: Option<Image>, policy: &Policy) -> Self {
        let geometry = medium.geometry();
        let discard = geometry.discard.filter(|_| !policy.manner.keeps_all);
        let rules = Rules {
            sector_size: geometry.sector_size,
            read_only: geometry.read_only,
            discard: discard.is_some(),
            secure_discard: discard.is_some_and(|discard| discard.secure),
            zeroes_are_written: geometry.zeroes_are_written,
        };
        let mut serving = Serving::new(rules, geometry.size / SECTOR);
        serving.limits = Limits::new(policy.iops, policy.bytes);
        serving.waiting = policy.waiting;
        serving.reach = policy.reach;
        serving.mapping = policy.mapping;
        serving.on_error = policy.on_error;
        Self {
            medium,
            manner: policy.manner,
            image,
            serving: Arc::new(serving),
            counted: Arc::default(),
            keep: None,
        }
    }

    /// Keeps journals, as `keep` says.
    #[must_use]
    pub fn keeping(mut self, keep: Keep) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Removes the journals: the device is no more.
    pub fn forget(&self) {
        if let Some(keep) = &self.keep {
            keep.remove();
        }
    }

    /// What is served.
    #[must_use]
    pub fn medium(&self) -> &Medium {
        &self.medium
    }

    /// The limits that hold. Whoever changes them has the queues
    /// [woken](Running::wake).
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.serving.limits
    }

    /// What is kept of requests that the medium refused.
    #[must_use]
    pub fn stalls(&self) -> &Stalls {
        &self.serving.stalls
    }

    /// Whether the image is still there.
    ///
    /// # Errors
    ///
    /// It is dead, and nothing can take its place.
    pub fn present(&self) -> Result<Present, ConfigError> {
        self.image.as_ref().map_or(Ok(Present::Served), Image::present)
    }

    /// Why flushes cannot succeed any more, a positive `errno`.
    #[must_use]
    pub fn lost(&self) -> Option<i32> {
        self.serving.standing.lost()
    }

    /// Everything counted, over all connections and queues.
    #[must_use]
    pub fn total(&self) -> Snapshot {
        let counted = self.counted();
        let mut total = counted.before.clone();
        for (stats, _) in &counted.now {
            total.merge(&stats.snapshot());
        }
        total
    }

    /// What was counted of the connection that is served, queue by queue, and of all.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let (queues, mut ever) = {
            let counted = self.counted();
            let now = counted.now.iter().map(|(stats, _)| stats.snapshot());
            (now.collect::<Vec<Snapshot>>(), counted.before.clone())
        };
        let mut total = Snapshot::default();
        for queue in &queues {
            total.merge(queue);
        }
        ever.merge(&total);
        Counters::new(queues, total, ever)
    }

    /// Where the rings' indexes are.
    #[must_use]
    pub fn rings(&self) -> Vec<Ring> {
        let counted = self.counted();
        let rings = counted.now.iter().zip(0..).map(|((stats, slots), queue)| {
            let now = stats.snapshot();
            Ring::new(queue, *slots, &now)
        });
        rings.collect()
    }

    /// What carries requests to the medium, known once a guest has connected: where io_uring is
    /// refused, it is not what was asked for.
    #[must_use]
    pub fn engine(&self) -> Option<&'static str> {
        self.counted().engine
    }

    /// How many connections were gone on with after another process had served them, and for how long the
    /// last of them was served by nobody.
    #[must_use]
    pub fn resumed(&self) -> (u64, Option<Duration>) {
        let counted = self.counted();
        (counted.resumed, counted.pause)
    }

    /// Queues in use.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.counted().now.len()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        lock(&self.counted)
    }
}

pub(super) fn lock(counted: &Mutex<Counted>) -> MutexGuard<'_, Counted> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a frontend is told of a medium.
pub(super) fn described(medium: &Medium, manner: Manner) -> Disk {
    let geometry = medium.geometry();
    // The size must be a multiple of the physical sector (io/blkif.h, `sectors`): an image that
    // ends within one has no such sectors as far as a frontend can tell.
    let fits = geometry.size.is_multiple_of(u64::from(geometry.physical_sector_size.max(1)));
    let physical_sector_size =
        if fits { geometry.physical_sector_size } else { geometry.sector_size };
    Disk {
        sectors: geometry.size / SECTOR,
        sector_size: geometry.sector_size,
        physical_sector_size,
        read_only: geometry.read_only,
        cdrom: manner.cdrom,
        removable: manner.removable,
        discard: geometry.discard.filter(|_| !manner.keeps_all).map(|discard| Discard {
            granularity: discard.granularity,
            alignment: discard.alignment,
            secure: discard.secure,
        }),
    }
}

impl<H> Service<H> for Disks
where
    H: Platform + Clone + Send + 'static,
    H::Mapping: Memory + Send + 'static,
    H::Channel: Channel + AsFd + Send + 'static,
{
    const KIND: &'static Kind = KIND;

    type Offer = Offer;
    type Running = Queues;
    type Change = Resize;
    type Changed = u64;

    fn prepare(&self, guest: &Guest, number: u32) -> Result<(), Error> {
        if let Some(keep) = &self.keep {
            keep.name(guest.id, number);
        }
        Ok(())
    }

    fn release(&self) {
        // Of the next guest's disk nothing is known.
        self.forget();
    }

    fn changed(&self) -> Option<String> {
        let (iops, bytes) = self.limits().get();
        Some(format!("{} {}", iops.unwrap_or(0), bytes.unwrap_or(0)))
    }

    fn restore(&self, changed: &str) {
        let limits: Option<Vec<u64>> = changed.split(' ').map(|word| word.parse().ok()).collect();
        if let Some([iops, bytes]) = limits.as_deref() {
            let some = |limit: u64| Some(limit).filter(|limit| *limit > 0);
            self.limits().set(some(*iops), some(*bytes));
        }
    }

    fn connect<S: Store + ?Sized>(
        &self,
        domain: &H,
        seat: &Seat,
        store: &S,
        offer: &Offer,
        waker: Waker,
    ) -> Result<Queues, Error> {
        let transport = xenbus::read(seat, store, offer)?;
        let goes_on = seat.own_state(store, Transaction::NONE)? == State::Connected;
        let patience = self.keep.as_ref().map_or(Duration::ZERO, |keep| keep.patience(goes_on));
        let connection = xenbus::connect(seat, domain, &transport, patience)?;
        tracing::debug!(domain = %seat.peer, queues = transport.queues.len(),
            layout = ?transport.layout, persistent = transport.persistent, "connecting");
        let kept = match &self.keep {
            Some(keep) => keep.take_up(seat, &transport, &connection)?,
            None => connection.queues.iter().map(|_| None).collect(),
        };
        if goes_on {
            self.count_resumed(&kept);
        }
        let mut queues = self.start(domain, connection, kept, waker)?;
        queues.keys = Some((transport, *offer));
        Ok(queues)
    }

    fn recalls<S: Store + ?Sized>(
        &self,
        domain: &H,
        seat: &Seat,
        store: &S,
        offer: &Offer,
    ) -> Result<bool, Error> {
        match &self.keep {
            Some(keep) => keep.recalls(domain, seat, || xenbus::read(seat, store, offer)),
            None => Ok(false),
        }
    }

    fn describe(&self, offer: &Offer) -> Vec<Key> {
        xenbus::describe(offer, &described(&self.medium, self.manner))
    }

    fn change(&self, resize: Resize) -> Result<u64, Error> {
        self.resize(resize)
    }
}

impl Disks {
    /// Gives the disk another size; answers the size that it has from now on.
    ///
    /// # Errors
    ///
    /// It cannot be had, or the host cannot.
    pub fn resize(&self, Resize { size }: Resize) -> Result<u64, Error> {
        let Some(image) = &self.image else {
            let have = self.medium.geometry().size;
            return match size {
                Some(size) if size != have => {
                    let problem = "there is no image; only images are resized";
                    Err(ConfigError::new("size", size, problem).into())
                }
                _ => Ok(have),
            };
        };
        let size = image.resize(size)?;
        self.serving.sectors.store(size / SECTOR, Ordering::SeqCst);
        Ok(size)
    }

    /// Serves `connection`. `waker` is woken when a queue ends before it was told to.
    ///
    /// # Errors
    ///
    /// The frontend's fault, or the host cannot.
    fn start<H>(
        &self,
        domain: &H,
        connection: Connection<H::Mapping, H::Channel>,
        kept: Vec<Option<Kept>>,
        waker: Waker,
    ) -> Result<Queues, Error>
    where
        H: Platform + Clone + Send + 'static,
        H::Mapping: Memory + Send + 'static,
        H::Channel: Channel + AsFd + Send + 'static,
    {
        let Connection { peer, layout, features, queues: links, .. } = connection;
        let broken = Arc::new(Mutex::new(None));
        let counted = Arc::clone(&self.counted);
        let serving = Arc::clone(&self.serving);
        let journaled = kept.iter().all(Option::is_some);
        let handles = Vec::new();
        let mut queues = Queues { handles, broken, counted, serving, journaled, keys: None };
        lock(&self.counted).now.clear();
        for ((link, journal), queue) in links.into_iter().zip(kept).zip(0_u16..) {
            let slots = slots(link.ring.len());
            let stats = Arc::new(Stats::default());
            let parts = Parts {
                name: format!("queue-{queue}"),
                peer,
                layout,
                features,
                link,
                journal,
                domain: domain.clone(),
                serving: Arc::clone(&self.serving),
                stats: Arc::clone(&stats),
            };
            let medium = self.medium.clone();
            let (broken, waker) = (Arc::clone(&queues.broken), waker.clone());
            let counted = Arc::clone(&self.counted);
            // Those that were started end with `queues` where this one cannot be.
            let handle = queue::spawn(
                parts,
                move || {
                    let engine = medium.engine(queue, slots)?;
                    lock(&counted).engine = Some(engine.name());
                    Ok(engine)
                },
                move |ended| {
                    if let Some(error) = reason(ended) {
                        let mut first = broken.lock().unwrap_or_else(PoisonError::into_inner);
                        first.get_or_insert(error);
                        drop(first);
                        waker.wake();
                    }
                },
            )?;
            queues.handles.push(handle);
            lock(&self.counted).now.push((stats, slots));
        }
        Ok(queues)
    }

    fn count_resumed(&self, kept: &[Option<Kept>]) {
        let mut counted = lock(&self.counted);
        let resumed = || kept.iter().flatten().filter(|kept| kept.resumed);
        if let Some(since) = self.keep.as_ref().and_then(Keep::begin) {
            let pause = since.elapsed();
            let owed: usize = resumed().map(|kept| kept.owed.requests.len()).sum();
            tracing::info!(
                owed,
                pause_ms = pause.as_millis(),
                "going on with another process's rings"
            );
            counted.resumed = counted.resumed.saturating_add(1);
            counted.pause = Some(pause);
            for errno in resumed().filter_map(|kept| kept.owed.lost) {
                self.serving.standing.lose(errno);
            }
        }
    }
}

/// Why a queue ended before it was told to.
pub(super) fn reason(ended: &Ended) -> Option<Error> {
    match ended {
        Ended::Fault(fault) => Some(fault.clone().into()),
        Ended::Failed(error) => Some(error.clone().into()),
        _ => None,
    }
}

/// The queues of one connection. Dropping them ends them as [`Running::finish`] does.
#[derive(Debug)]
pub struct Queues {
    handles: Vec<Handle>,
    /// The first reason for which a queue ended by itself.
    broken: Arc<Mutex<Option<Error>>>,
    counted: Arc<Mutex<Counted>>,
    serving: Arc<Serving>,
    /// Whether each queue has a journal.
    journaled: bool,
    /// What the frontend wrote for this connection, and from which offer it chose.
    keys: Option<(Transport, Offer)>,
}

impl Running for Queues {
    fn failed(&mut self) -> Option<Error> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn wake(&self) {
        for handle in &self.handles {
            handle.wake();
        }
    }

    fn reread<S: Store + ?Sized>(&mut self, _: &Seat, _: &S) -> Result<(), Error> {
        // Nothing of a disk is changed in the store while it is in use.
        Ok(())
    }

    fn reconfigure<S: Store + ?Sized>(&mut self, _: &Seat, _: &S) -> Result<(), Error> {
        // A disk's frontend chooses once.
        Ok(())
    }

    fn is_current<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<bool, Error> {
        let Some((was, offer)) = &self.keys else { return Ok(true) };
        match xenbus::read(seat, store, offer) {
            Ok(now) => Ok(now.queues == was.queues),
            // What makes no sense was not what it connected with; it will say so by its state.
            Err(Error::Peer(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn leave(mut self) -> bool {
        if !self.journaled || self.serving.stalls.now().is_none() {
            // Finished at the end of the value's life.
            return true;
        }
        // What is kept cannot be finished, and stands in the journals.
        for handle in &self.handles {
            handle.tell(Command::Stop);
        }
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
        false
    }

    fn finish(self) {
        // All that there is to do is done at the end of the value's life.
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.tell(Command::Drain);
        }
        for handle in self.handles.drain(..) {
            // How it ended was told by the queue itself.
            let _ = handle.join();
        }
        let mut counted = lock(&self.counted);
        let Counted { now, before, .. } = &mut *counted;
        for (stats, _) in now.drain(..) {
            before.merge(&stats.snapshot());
        }
    }
}
