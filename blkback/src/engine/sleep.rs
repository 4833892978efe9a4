//! Sleeping in engines that have no ring with the kernel.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use hypervisor::HostError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Sleeps until one of `watched` is readable or `timeout` has passed; whether one is.
pub(super) fn until_readable(
    watched: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
) -> Result<bool, HostError> {
    let mut polled: Vec<_> =
        watched.iter().map(|watched| PollFd::new(*watched, PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, timeout.map(TimeSpec::from), None) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(HostError::new("wait for events", errno as i32)),
    }
}
