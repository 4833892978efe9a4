//! What serves a connection: a thread for each queue, and one for the control ring where there is one.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::backend::{Platform, Running, Waker};
use hypervisor::event::Channel;
use hypervisor::memory::Memory;
use hypervisor::store::Store;
use hypervisor::xenbus::Seat;
use hypervisor::{Error, HostError};

use crate::connect::Connection;
use crate::connect::xenbus::{self, Offer, Transport};
use crate::control;
use crate::device::uplink::Open;
use crate::device::vif::Standing;
use crate::queue::{self, Ended, Handle, Parts, Serving};
use crate::stats::Stats;

/// The queues of one connection. Dropping them ends them as [`Running::finish`] does.
#[derive(Debug)]
pub struct Queues {
    handles: Vec<Handle>,
    control: Option<control::Handle>,
    serving: Arc<Serving>,
    open: Arc<Open>,
    /// The first reason for which one ended by itself.
    broken: Arc<Mutex<Option<Error>>>,
    standing: Arc<Standing>,
    /// What the frontend wrote for this connection, and from which offer it chose.
    keys: Option<(Transport, Offer)>,
}

impl Queues {
    /// Says by which keys the frontend named its rings.
    pub(super) fn of(mut self, transport: Transport, offer: Offer) -> Self {
        self.keys = Some((transport, offer));
        self
    }

    /// Serves `connection`, whose packets go to `open`. `waker` is woken when a queue ends before it
    /// was told to.
    ///
    /// # Errors
    ///
    /// The host cannot.
    pub(super) fn start<H>(
        standing: Arc<Standing>,
        domain: &H,
        connection: Connection<H::Mapping, H::Channel>,
        open: Arc<Open>,
        serving: Serving,
        waker: &Waker,
    ) -> Result<Self, Error>
    where
        H: Platform + Clone + Send + 'static,
        H::Mapping: Memory + Send + 'static,
        H::Channel: Channel + AsFd + Send + 'static,
    {
        let Connection { peer, features, queues: links, control, .. } = connection;
        let ports = open.ports(&features, serving.queues())?;
        if ports.len() < links.len() {
            return Err(HostError::new("have as many ports as queues", libc::EMFILE).into());
        }
        let serving = Arc::new(serving);
        standing.lock().serve(&serving);
        // Those that were started end with this where another cannot be.
        let mut queues = Self {
            handles: Vec::new(),
            control: None,
            serving: Arc::clone(&serving),
            open,
            broken: Arc::default(),
            standing,
            keys: None,
        };
        for ((link, port), number) in links.into_iter().zip(ports).zip(0_u16..) {
            let stats = Arc::new(Stats::default());
            let parts = Parts {
                name: format!("queue-{number}"),
                number,
                peer,
                features,
                link,
                domain: domain.clone(),
                serving: Arc::clone(&serving),
                stats: Arc::clone(&stats),
            };
            let handle = queue::spawn(parts, port, queues.at_end(waker))?;
            queues.handles.push(handle);
            queues.standing.lock().now.push(stats);
        }
        if let Some(link) = control {
            let (domain, at_end) = (domain.clone(), queues.at_end(waker));
            let handle = control::spawn("control", peer, link, domain, serving, at_end)?;
            queues.control = Some(handle);
        }
        queues.open.set_carrier(true);
        Ok(queues)
    }

    /// What a thread does last: it says why, if nobody told it to end.
    fn at_end(&self, waker: &Waker) -> impl FnOnce(&Ended) + Send + use<> {
        let (broken, waker) = (Arc::clone(&self.broken), waker.clone());
        move |ended| {
            if let Some(error) = reason(ended) {
                broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                waker.wake();
            }
        }
    }
}

/// Why a thread ended before it was told to.
pub(super) fn reason(ended: &Ended) -> Option<Error> {
    match ended {
        Ended::Fault(fault) => Some(fault.clone().into()),
        Ended::Failed(error) => Some(error.clone().into()),
        Ended::Stopped => None,
    }
}

/// Takes in the rate that the toolstack gave what the guest sends, where it says another than before.
/// One that makes no sense changes nothing. Says whether it changed.
///
/// # Errors
///
/// The store is gone.
pub(super) fn reread_rate<S: Store + ?Sized>(
    standing: &Standing,
    seat: &Seat,
    store: &S,
) -> Result<bool, Error> {
    let said = match xenbus::rate(seat, store) {
        Ok(rate) => Ok(rate),
        Err(Error::Config(error)) => Err(error),
        Err(error) => return Err(error),
    };
    let mut inner = standing.lock();
    if inner.said.as_ref() == Some(&said) {
        return Ok(false);
    }
    // Nothing said, and nothing before: what we were told otherwise holds.
    let restored = std::mem::take(&mut inner.restored);
    let anything = (inner.said.is_some() || said != Ok(None)) && !restored;
    match &said {
        Ok(rate) if anything => {
            let (tx, rx) = (*rate, inner.rx);
            inner.set_rates(tx, rx);
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(device = seat.own, "{error}; left as it was"),
    }
    inner.said = Some(said);
    Ok(anything)
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

    fn reread<S: Store + ?Sized>(&mut self, seat: &Seat, store: &S) -> Result<(), Error> {
        self.serving.groups.choose(xenbus::multicast_control(seat, store)?);
        if reread_rate(&self.standing, seat, store)? {
            self.wake();
        }
        Ok(())
    }

    fn reconfigure<S: Store + ?Sized>(&mut self, seat: &Seat, store: &S) -> Result<(), Error> {
        self.serving.set_headroom(xenbus::headroom(seat, store)?);
        Ok(())
    }

    fn is_current<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<bool, Error> {
        let Some((was, offer)) = &self.keys else { return Ok(true) };
        match xenbus::read(seat, store, offer) {
            Ok(now) => Ok((&now.queues, now.control) == (&was.queues, was.control)),
            // What makes no sense was not what it connected with; it will say so by its state.
            Err(Error::Peer(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn finish(self) {
        // All that there is to do is done at the end of the value's life.
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        self.open.set_carrier(false);
        for handle in &self.handles {
            handle.stop();
        }
        if let Some(control) = &self.control {
            control.stop();
        }
        // How they ended was told by themselves.
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
        self.standing.lock().serve_no_more();
    }
}
