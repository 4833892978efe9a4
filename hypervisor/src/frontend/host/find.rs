//! Which devices this domain has, and waiting for one.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Host;
use crate::store::{StoreError, Transaction};
use crate::{Error, HostError};

/// The numbers of the devices in `directory` (`device/vbd`), lowest first.
///
/// # Errors
///
/// The store is gone.
pub fn devices<H: Host>(platform: &H, directory: &str) -> Result<Vec<u32>, Error> {
    let names = match platform.list(Transaction::NONE, directory) {
        Ok(names) => names,
        Err(StoreError::Missing(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Waits until there is device `wanted` in `directory`, or any where that is `None`; gives its
/// number. Where none comes within `patience`, gives those that are there instead.
///
/// # Errors
///
/// The store is gone.
pub fn wait<H: Host>(
    platform: &H,
    directory: &str,
    wanted: Option<u32>,
    patience: Duration,
) -> Result<Result<u32, Vec<u32>>, Error> {
    let token = format!("{directory}-wait");
    let deadline = Instant::now().checked_add(patience);
    platform.watch(directory, &token)?;
    let found = loop {
        while platform.changed()?.is_some() {}
        let there = devices(platform, directory)?;
        let found = match wanted {
            Some(number) => there.contains(&number).then_some(number),
            None => there.first().copied(),
        };
        if let Some(found) = found {
            break Ok(found);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            break Err(there);
        }
        sleep(platform.store_fd(), left)?;
    };
    platform.unwatch(directory, &token)?;
    Ok(found)
}

fn sleep(fd: BorrowedFd<'_>, left: Option<Duration>) -> Result<(), HostError> {
    let timeout = match left {
        None => PollTimeout::NONE,
        Some(left) => PollTimeout::try_from(left.saturating_add(Duration::from_micros(999)))
            .unwrap_or(PollTimeout::MAX),
    };
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(HostError::new("wait for the store", errno as i32)),
    }
}
