//! Sleeping at descriptors, for ports that have no ring of the kernel's.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use hypervisor::HostError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Readable;

/// Sleeps until one of the descriptors is readable, or `timeout` has passed, or a signal came. Says which
/// of those `watched` are; that one of `others` is, ends the sleep.
pub(crate) fn sleep<'a>(
    watched: &[BorrowedFd<'a>],
    others: impl Iterator<Item = BorrowedFd<'a>>,
    timeout: Option<Duration>,
) -> Result<Readable, HostError> {
    let all = watched.iter().copied().chain(others);
    let mut polled: Vec<_> =
        all.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
    let millis = timeout.map(|timeout| timeout.as_nanos().div_ceil(1_000_000));
    let timeout = match millis.map(i32::try_from) {
        None => PollTimeout::NONE,
        Some(Ok(millis)) => PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX),
        Some(Err(_)) => PollTimeout::MAX,
    };
    match poll(&mut polled, timeout) {
        Ok(_) => {
            let found = polled.iter().take(watched.len()).enumerate();
            Ok(found.filter(|(_, one)| one.any() != Some(false)).map(|(place, _)| place).collect())
        }
        Err(Errno::EINTR) => Ok(Readable::NONE),
        Err(errno) => Err(HostError::new("wait at a port", errno as i32)),
    }
}
