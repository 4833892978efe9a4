//! Ending in good order when asked to.
//!
//! SIGINT and SIGTERM are blocked before any thread is made, and waited for by a thread of their own,
//! which sets a flag and makes a descriptor readable. A second signal ends the process at once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};

/// Whether to end.
#[derive(Clone)]
pub(crate) struct Stop(Arc<Inner>);

struct Inner {
    asked: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// Listens for the signals. To be called before any thread is made.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags).context("make an eventfd")?;
        let stop = Self(Arc::new(Inner { asked: AtomicBool::new(false), event }));
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().context("block signals")?;
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
            .context("start a thread")?;
        Ok(stop)
    }

    /// Asks everybody to end.
    pub(crate) fn now(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
        let _ = self.0.event.write(1);
    }

    /// Whether that was asked.
    pub(crate) fn asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
