//! Which interfaces this domain has, and waiting for one.

use std::time::Duration;

use hypervisor::frontend::host::find;
use hypervisor::{ConfigError, Error};

use crate::host::Host;

/// Where a domain's network interfaces are, below its home.
const DEVICES: &str = "device/vif";

/// The numbers of the interfaces that this domain was given, lowest first.
///
/// # Errors
///
/// The store is gone.
pub fn interfaces<H: Host>(platform: &H) -> Result<Vec<u32>, Error> {
    find::devices(platform, DEVICES)
}

/// The directory of interface `number`.
#[must_use]
pub fn directory(number: u32) -> String {
    format!("{DEVICES}/{number}")
}

/// Waits until this domain is given interface `wanted`, or any where that is `None`; gives its number.
///
/// # Errors
///
/// No such interface comes within `patience`, or the store is gone.
pub fn wait<H: Host>(platform: &H, wanted: Option<u32>, patience: Duration) -> Result<u32, Error> {
    let there = match find::wait(platform, DEVICES, wanted, patience)? {
        Ok(found) => return Ok(found),
        Err(there) => there,
    };
    let name = wanted.map_or("any".to_owned(), |number| number.to_string());
    let seconds = patience.as_secs();
    let have: Vec<String> = there.iter().map(u32::to_string).collect();
    let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
    let problem = format!(
        "no backend gave it to this domain within {seconds} s (interfaces here: {have}); \
         start one: netback --domain THIS-DOMAIN, or on Xen: xl network-attach"
    );
    Err(ConfigError::new("interface", name, problem).into())
}
