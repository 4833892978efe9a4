//! Event channels, through `/dev/xen/evtchn`.
//!
//! Each channel has an open file of its own, so that each can be waited for and none can fill
//! another's queue. The kernel masks a port when it delivers an event and queues its number to be
//! read; writing the number back unmasks the port. Closing the file closes the channel, and so does
//! the end of the process: Xen then leaves the peer's end unbound.
//!
//! An event that is not unmasked soon is taken for a storm's by the kernel, which then delivers the
//! next ones later and later (its `xen.event_eoi_delay`): unmask as soon as the work is done.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use crate::event::{Channel, Events};
use crate::{DomId, EventPort, HostError};

use super::domain::Domain;
use super::ioctl;
use super::node::EVTCHN;

/// One end of an event channel. Dropping it closes it.
///
/// As a file descriptor it polls readable while it is pending and unmasked.
#[derive(Debug)]
pub struct EventChannel {
    evtchn: OwnedFd,
    port: EventPort,
    /// Taken, and not unmasked since. Unmasking what was not taken would queue its number twice.
    taken: AtomicBool,
}

impl EventChannel {
    fn opened(
        doing: impl Fn() -> String,
        open: impl Fn(BorrowedFd<'_>) -> nix::Result<EventPort>,
    ) -> Result<Self, HostError> {
        let evtchn = EVTCHN.open()?;
        let port = open(evtchn.as_fd()).map_err(|errno| HostError::new(doing(), errno as i32))?;
        Ok(Self { evtchn, port, taken: AtomicBool::new(false) })
    }
}

impl Events for Domain {
    type Channel = EventChannel;

    fn allocate(&self, peer: DomId) -> Result<EventChannel, HostError> {
        let doing = || format!("allocate an event channel for domain {peer}");
        EventChannel::opened(doing, |evtchn| ioctl::allocate_port(evtchn, peer))
    }

    fn bind(&self, peer: DomId, port: EventPort) -> Result<EventChannel, HostError> {
        let doing = || format!("bind event channel {port} of domain {peer}");
        EventChannel::opened(doing, |evtchn| ioctl::bind(evtchn, peer, port))
    }
}

impl Channel for EventChannel {
    fn port(&self) -> EventPort {
        self.port
    }

    fn notify(&self) -> Result<(), HostError> {
        ioctl::notify(self.evtchn.as_fd(), self.port).map_err(|errno| {
            HostError::new(format!("notify through event channel {}", self.port), errno as i32)
        })
    }

    fn take(&self) -> bool {
        let mut port = [0; 4];
        // The file never waits. It gives whole numbers, and only our port's.
        let taken = loop {
            match nix::unistd::read(&self.evtchn, &mut port) {
                Err(Errno::EINTR) => {}
                other => break other == Ok(port.len()),
            }
        };
        if taken {
            self.taken.store(true, Ordering::SeqCst);
        }
        taken
    }

    fn unmask(&self) {
        if self.taken.swap(false, Ordering::SeqCst) {
            let port = self.port.0.to_ne_bytes();
            // It fails only where the kernel has no memory for a moment, or a signal came first.
            while let Err(Errno::EINTR | Errno::ENOMEM | Errno::EAGAIN) =
                nix::unistd::write(&self.evtchn, &port)
            {}
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.evtchn.as_fd()
    }
}
