//! Which disks this domain has, and waiting for one.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use hypervisor::store::{StoreError, Transaction};
use hypervisor::{ConfigError, Error, HostError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::Host;
use crate::vdev;

/// Where a domain's block devices are, below its home.
const DEVICES: &str = "device/vbd";
const TOKEN: &str = "blkfront-devices";

/// The numbers of the disks that this domain was given, lowest first.
///
/// # Errors
///
/// The store is gone.
pub fn disks<H: Host>(platform: &H) -> Result<Vec<u32>, Error> {
    let names = match platform.list(Transaction::NONE, DEVICES) {
        Ok(names) => names,
        Err(StoreError::Missing(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The directory of disk `number`.
#[must_use]
pub fn directory(number: u32) -> String {
    format!("{DEVICES}/{number}")
}

/// Waits until this domain is given the disk called `wanted`, or any where that is `None`; gives its
/// number.
///
/// # Errors
///
/// `wanted` is no disk's name, no such disk comes within `patience`, or the store is gone.
pub fn wait<H: Host>(platform: &H, wanted: Option<&str>, patience: Duration) -> Result<u32, Error> {
    let number = match wanted {
        None => None,
        Some(name) => Some(vdev::number(name).ok_or_else(|| {
            ConfigError::new("disk", name, "is neither a name as xvda nor a number")
        })?),
    };
    let deadline = Instant::now().checked_add(patience);
    platform.watch(DEVICES, TOKEN)?;
    let found = loop {
        while platform.changed()?.is_some() {}
        let there = disks(platform)?;
        let found = match number {
            Some(number) => there.contains(&number).then_some(number),
            None => there.first().copied(),
        };
        if let Some(found) = found {
            break Ok(found);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            let name = wanted.unwrap_or("any");
            let seconds = patience.as_secs();
            let have: Vec<String> = there.into_iter().map(vdev::name).collect();
            let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
            let problem = format!(
                "no backend gave it to this domain within {seconds} s (disks here: {have}); \
                 start one: blkback --image FILE --domain THIS-DOMAIN, or on Xen: xl block-attach"
            );
            break Err(ConfigError::new("disk", name, problem).into());
        }
        sleep(platform.store_fd(), left)?;
    };
    platform.unwatch(DEVICES, TOKEN)?;
    found
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
