//! Ending a tool in good order when asked to.
//!
//! SIGINT and SIGTERM are blocked before any thread is made, and waited for by a thread of their own,
//! which sets a flag and makes a descriptor readable. A second signal ends the process at once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal};

use super::Bell;
use crate::HostError;

/// Whether to end.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asked: AtomicBool,
    event: Bell,
}

impl Stop {
    /// One that nobody asks but by [`now`](Self::now).
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn new() -> Result<Self, HostError> {
        Ok(Self(Arc::new(Inner { asked: AtomicBool::new(false), event: Bell::new()? })))
    }

    /// Listens for the signals. To be called before any thread is made.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors or threads left.
    pub fn listen() -> Result<Self, HostError> {
        let stop = Self::new()?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().map_err(|errno| HostError::new("block signals", errno as i32))?;
        let told = stop.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                if signals.wait().is_ok() {
                    told.now();
                }
                if signals.wait().is_ok() {
                    std::process::exit(130);
                }
            })
            .map_err(|error| HostError::from_io("start a thread", &error))?;
        Ok(stop)
    }

    /// Asks everybody to end.
    pub fn now(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
        self.0.event.ring();
    }

    /// Whether that was asked.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
