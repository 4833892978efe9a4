//! The two event descriptors of a queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::event::Channel;
use crate::{EventPort, HostError};

/// By which the driver tells of what it made available (*kick*), and is told of what was used (*call*). The monitor
/// may replace the latter at any time; without one, the driver looks by itself.
#[derive(Clone, Debug)]
pub struct Bell {
    pub(super) number: u16,
    pub(super) kick: Arc<OwnedFd>,
    pub(super) call: Call,
}

/// Where a call goes, as it is now.
pub(super) type Call = Arc<Mutex<Option<OwnedFd>>>;

/// Adds one to an event descriptor. One that is full says all that it can.
pub(super) fn ring(fd: &OwnedFd) -> Result<(), HostError> {
    loop {
        match nix::unistd::write(fd, &1_u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(HostError::new("notify a machine's driver", errno as i32)),
        }
    }
}

impl Channel for Bell {
    fn port(&self) -> EventPort {
        EventPort(u32::from(self.number))
    }

    fn notify(&self) -> Result<(), HostError> {
        match &*self.call.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(call) => ring(call),
            None => Ok(()),
        }
    }

    fn take(&self) -> bool {
        // It does not block: so it was made when the session took it.
        let mut count = [0; 8];
        matches!(nix::unistd::read(&self.kick, &mut count), Ok(8))
    }

    fn unmask(&self) {
        // What came meanwhile keeps the descriptor readable.
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }
}
