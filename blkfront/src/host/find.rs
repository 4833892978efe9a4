//! Which disks this domain has, and waiting for one.

use std::time::Duration;

use hypervisor::frontend::host::find;
use hypervisor::{ConfigError, Error};

use crate::host::Host;
use crate::vdev;

/// Where a domain's block devices are, below its home.
const DEVICES: &str = "device/vbd";

/// The numbers of the disks that this domain was given, lowest first.
///
/// # Errors
///
/// The store is gone.
pub fn disks<H: Host>(platform: &H) -> Result<Vec<u32>, Error> {
    find::devices(platform, DEVICES)
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
    let there = match find::wait(platform, DEVICES, number, patience)? {
        Ok(found) => return Ok(found),
        Err(there) => there,
    };
    let name = wanted.unwrap_or("any");
    let seconds = patience.as_secs();
    let have: Vec<String> = there.into_iter().map(vdev::name).collect();
    let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
    let problem = format!(
        "no backend gave it to this domain within {seconds} s (disks here: {have}); \
         start one: blkback --image FILE --domain THIS-DOMAIN, or on Xen: xl block-attach"
    );
    Err(ConfigError::new("disk", name, problem).into())
}
