//! Puts a queue together on a thread of its own.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use hypervisor::event::Channel;
use hypervisor::memory::{Memory, Using};
use hypervisor::{DomId, HostError, PeerFault};

use super::{Control, Ended, Ends, Queue, Serving, ends_of_rings};
use crate::connect::{Features, Link};
use crate::port::Port;
use crate::rx::Sink;
use crate::stats::Stats;
use crate::tx::Source;

/// What a queue of Xen's rings is made of, beside its port.
#[derive(Debug)]
pub struct Parts<U: Using, C> {
    /// The thread's name.
    pub name: String,
    /// Which of the device's queues it is, from 0.
    pub number: u16,
    /// Whose packets these are.
    pub peer: DomId,
    /// What was negotiated.
    pub features: Features,
    /// The rings and their channels.
    pub link: Link<U::Mapping, C>,
    /// Who we are to the hypervisor.
    pub domain: U,
    /// What the device's queues have in common.
    pub serving: Arc<Serving>,
    /// Where to count.
    pub stats: Arc<Stats>,
}

/// A queue that was started.
#[derive(Debug)]
pub struct Handle {
    control: Arc<Control>,
    stats: Arc<Stats>,
    thread: JoinHandle<Ended>,
}

impl Handle {
    /// Tells it to end.
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Makes it look at what was changed in [`Serving`].
    pub fn wake(&self) {
        self.control.wake();
    }

    /// What it counts.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Whether it has ended by itself or as told.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. Tell it to stop first.
    #[must_use]
    pub fn join(self) -> Ended {
        self.thread.join().unwrap_or_else(|_| Ended::Failed(panicked()))
    }
}

fn panicked() -> HostError {
    HostError::new("serve a queue: its thread panicked", libc::EIO)
}

/// What a queue is called, and what it shares.
#[derive(Debug)]
pub struct About {
    /// The thread's name.
    pub name: String,
    /// Which of the device's queues it is, from 0.
    pub number: u16,
    /// What the device's queues have in common.
    pub serving: Arc<Serving>,
    /// Where to count.
    pub stats: Arc<Stats>,
}

/// Starts a queue of Xen's rings. `port` is called on the queue's thread, since a port belongs to the thread that
/// makes it; `at_end` is called there last of all, when rings, grants and port are given up.
///
/// # Errors
///
/// There is no descriptor or thread to be had. That the rings or the port cannot be had ends the
/// queue, and is told as every other end.
pub fn spawn<U, C, P, F>(
    parts: Parts<U, C>,
    port: F,
    at_end: impl FnOnce(&Ended) + Send + 'static,
) -> Result<Handle, HostError>
where
    U: Using + Send + 'static,
    U::Mapping: Memory,
    C: Channel + AsFd + Send + 'static,
    P: Port,
    F: FnOnce() -> Result<P, HostError> + Send + 'static,
{
    let Parts { name, number, peer, features, link, domain, serving, stats } = parts;
    let about = About { name, number, serving, stats };
    thread(
        about,
        move |about| {
            let link = (peer, link, features);
            ends_of_rings(about.number, link, domain, &about.serving, &about.stats)
        },
        port,
        at_end,
    )
}

/// Starts a queue between `ends` and a port, otherwise as [`spawn`] does.
///
/// # Errors
///
/// There is no descriptor or thread to be had.
pub fn spawn_ends<T, K, C, P, F>(
    about: About,
    ends: Ends<T, K, C>,
    port: F,
    at_end: impl FnOnce(&Ended) + Send + 'static,
) -> Result<Handle, HostError>
where
    T: Source + Send + 'static,
    K: Sink + Send + 'static,
    C: Channel + AsFd + Send + 'static,
    P: Port,
    F: FnOnce() -> Result<P, HostError> + Send + 'static,
{
    thread(about, move |_| Ok(ends), port, at_end)
}

fn thread<T, K, C, P, F>(
    about: About,
    ends: impl FnOnce(&About) -> Result<Ends<T, K, C>, PeerFault> + Send + 'static,
    port: F,
    at_end: impl FnOnce(&Ended) + Send + 'static,
) -> Result<Handle, HostError>
where
    T: Source,
    K: Sink,
    C: Channel + AsFd,
    P: Port,
    F: FnOnce() -> Result<P, HostError> + Send + 'static,
{
    let control = Control::new()?;
    let stats = Arc::clone(&about.stats);
    let theirs = Arc::clone(&control);
    let (serving, number) = (Arc::clone(&about.serving), about.number);
    // From here on, and not only once this queue's thread runs: others may run already.
    if let Some(inbox) = serving.inbox(number) {
        inbox.open(Arc::clone(&control));
    }
    let thread = std::thread::Builder::new()
        .name(about.name.clone())
        .spawn(move || {
            // Whoever waits for this end is told of it, even of a panic before the loop.
            let serve = AssertUnwindSafe(|| serve(about, theirs, ends, port));
            let ended = catch_unwind(serve).unwrap_or_else(|_| Ended::Failed(panicked()));
            if let Some(inbox) = serving.inbox(number) {
                inbox.close();
            }
            at_end(&ended);
            ended
        })
        .map_err(|error| HostError::from_io("start a queue's thread", &error))?;
    Ok(Handle { control, stats, thread })
}

fn serve<T, K, C, P, F>(
    about: About,
    control: Arc<Control>,
    ends: impl FnOnce(&About) -> Result<Ends<T, K, C>, PeerFault>,
    port: F,
) -> Ended
where
    T: Source,
    K: Sink,
    C: Channel + AsFd,
    P: Port,
    F: FnOnce() -> Result<P, HostError>,
{
    let port = match port() {
        Ok(port) => port,
        Err(error) => return Ended::Failed(error),
    };
    match ends(&about) {
        Ok(ends) => {
            let About { number, serving, stats, .. } = about;
            Queue::new(number, ends, port, serving, control, stats).run()
        }
        Err(fault) => Ended::Fault(fault),
    }
}
