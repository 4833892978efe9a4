//! Seeing to it that nobody else in this domain uses a device.
//!
//! On Xen a domain is a whole machine, and its kernel has frontends of its own that take every device
//! that appears. Two frontends on one device would tear down each other's rings. So we ask sysfs whether
//! a driver of the kernel's has it, and hold a name that only one process can hold: one that no file
//! stands for and that goes with the process, however it ends.
//!
//! What the kernel does later is not prevented: a driver that is loaded while we use the device takes it.
//!
//! Source: Linux, `Documentation/ABI/stable/sysfs-bus-xen-backend` and `Documentation/driver-api`
//! (`/sys/bus/xen/devices/vbd-NUMBER/driver`).

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use crate::{ConfigError, Error, HostError};

/// The kernel's devices on the store's bus.
const DEVICES: &str = "/sys/bus/xen/devices";

/// A device that is ours, among this machine's processes, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _name: UnixListener,
}

/// How people speak of a device that is to be claimed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its kind in the store: `vbd`.
    pub kind: &'a str,
    /// Its number.
    pub number: u32,
    /// What it is: `disk`.
    pub thing: &'static str,
    /// Its name: `xvda`.
    pub name: &'a str,
    /// Our program: `blkfront`.
    pub program: &'a str,
    /// By which option another one is chosen: `--vdev`.
    pub option: &'a str,
    /// What has to be done before the kernel's driver can let go of it.
    pub before: &'a str,
}

/// Claims a device of the domain that this machine is.
///
/// # Errors
///
/// A driver of the kernel's or another process has it; the error says what to do.
pub fn claim(wanted: &Wanted<'_>) -> Result<Claim, Error> {
    // The name first: who has it changes nothing in sysfs.
    let name = own(&format!("domkit-{}-{}", wanted.program, wanted.number), wanted)?;
    no_driver(Path::new(DEVICES), wanted)?;
    Ok(Claim { _name: name })
}

fn own(name: &str, wanted: &Wanted<'_>) -> Result<UnixListener, Error> {
    let address = SocketAddr::from_abstract_name(name);
    match address.and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let (program, option) = (wanted.program, wanted.option);
            let problem =
                format!("another {program} uses it; end that one, or choose another by {option}");
            Err(ConfigError::new(wanted.thing, wanted.name, problem).into())
        }
        Err(error) => Err(HostError::from_io(format!("claim the name {name}"), &error).into()),
    }
}

/// Whether no driver among `devices` has the device.
fn no_driver(devices: &Path, wanted: &Wanted<'_>) -> Result<(), ConfigError> {
    let device = format!("{}-{}", wanted.kind, wanted.number);
    // No such device: the kernel does not even know of it. No link: it has no driver for it.
    let Ok(driver) = std::fs::read_link(devices.join(&device).join("driver")) else {
        return Ok(());
    };
    let driver = driver.file_name().unwrap_or_default().to_string_lossy();
    let problem = format!(
        "the kernel's driver '{driver}' has it. {}, and take it away from there: echo {device} > \
         /sys/bus/xen/drivers/{driver}/unbind (to give it back: the same with bind)",
        wanted.before
    );
    Err(ConfigError::new(wanted.thing, wanted.name, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    const XVDA: Wanted<'_> = Wanted {
        kind: "vbd",
        number: 51712,
        thing: "disk",
        name: "xvda",
        program: "blkfront",
        option: "--vdev",
        before: "Unmount what is on it",
    };
    const XVDB: Wanted<'_> = Wanted { number: 51728, name: "xvdb", ..XVDA };

    #[test]
    fn a_disk_belongs_to_one_process_at_a_time() {
        let name = format!("domkit-claim-test-{}", std::process::id());
        let held = own(&name, &XVDA).unwrap();
        let error = own(&name, &XVDA).unwrap_err().to_string();
        assert!(error.contains("xvda") && error.contains("another blkfront"), "{error}");
        drop(held);
        own(&name, &XVDA).unwrap();
    }

    #[test]
    fn who_has_a_driver_is_told_how_to_unbind_it() {
        let home = tempfile::tempdir().unwrap();
        assert!(no_driver(home.path(), &XVDB).is_ok(), "the kernel does not know it");
        let device = home.path().join("vbd-51728");
        std::fs::create_dir(&device).unwrap();
        assert!(no_driver(home.path(), &XVDB).is_ok(), "no driver is loaded");
        std::os::unix::fs::symlink("../../bus/xen/drivers/vbd", device.join("driver")).unwrap();
        let error = no_driver(home.path(), &XVDB).unwrap_err().to_string();
        let how = "echo vbd-51728 > /sys/bus/xen/drivers/vbd/unbind";
        assert!(error.contains("xvdb") && error.contains(how), "{error}");
    }
}
