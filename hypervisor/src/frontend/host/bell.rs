//! Waking a thread that sleeps on file descriptors.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::HostError;

/// Polls readable from when it is rung until it is hushed.
#[derive(Debug)]
pub struct Bell(EventFd);

impl Bell {
    /// One that is silent.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn new() -> Result<Self, HostError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_value_and_flags(0, flags)
            .map(Self)
            .map_err(|errno| HostError::new("make an eventfd", errno as i32))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        // Only a counter that is full already can refuse, and that is rung.
        let _ = self.0.write(1);
    }

    /// Makes it silent again.
    pub fn hush(&self) {
        while let Err(Errno::EINTR) = self.0.read() {}
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
