//! Seeing to it that nobody else in this domain uses a disk.
//!
//! On Xen a domain is a whole machine, and its kernel has a frontend of its own that takes every disk
//! that appears. Two frontends on one disk would tear down each other's rings. So we ask sysfs whether
//! a driver of the kernel's has it, and hold a name that only one process can hold: one that no file
//! stands for and that goes with the process, however it ends.
//!
//! What the kernel does later is not prevented: a driver that is loaded while we use the disk takes it.
//!
//! Source: Linux, `Documentation/ABI/stable/sysfs-bus-xen-backend` and `Documentation/driver-api`
//! (`/sys/bus/xen/devices/vbd-NUMBER/driver`).

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use hypervisor::{ConfigError, Error, HostError};

use crate::vdev;

/// The kernel's devices on the store's bus.
const DEVICES: &str = "/sys/bus/xen/devices";

/// A disk that is ours, among this machine's processes, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _name: UnixListener,
}

/// Claims disk `number` of the domain that this machine is.
///
/// # Errors
///
/// A driver of the kernel's or another process has it; the error says what to do.
pub fn claim(number: u32) -> Result<Claim, Error> {
    // The name first: who has it changes nothing in sysfs.
    let name = own(&format!("domkit-blkfront-{number}"), number)?;
    no_driver(Path::new(DEVICES), number)?;
    Ok(Claim { _name: name })
}

fn own(name: &str, number: u32) -> Result<UnixListener, Error> {
    let address = SocketAddr::from_abstract_name(name);
    match address.and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let problem = "another blkfront uses it; end that one, or choose another by --vdev";
            Err(ConfigError::new("disk", vdev::name(number), problem).into())
        }
        Err(error) => Err(HostError::from_io(format!("claim the name {name}"), &error).into()),
    }
}

/// Whether no driver among `devices` has the disk.
fn no_driver(devices: &Path, number: u32) -> Result<(), ConfigError> {
    let device = format!("vbd-{number}");
    // No such device: the kernel does not even know of it. No link: it has no driver for it.
    let Ok(driver) = std::fs::read_link(devices.join(&device).join("driver")) else {
        return Ok(());
    };
    let driver = driver.file_name().unwrap_or_default().to_string_lossy();
    let problem = format!(
        "the kernel's driver '{driver}' (xen-blkfront) has it. Unmount what is on it, and take it away \
         from there: echo {device} > /sys/bus/xen/drivers/{driver}/unbind (to give it back: the same \
         with bind)"
    );
    Err(ConfigError::new("disk", vdev::name(number), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_belongs_to_one_process_at_a_time() {
        let name = format!("domkit-blkfront-test-{}", std::process::id());
        let held = own(&name, 51712).unwrap();
        let error = own(&name, 51712).unwrap_err().to_string();
        assert!(error.contains("xvda") && error.contains("another blkfront"), "{error}");
        drop(held);
        own(&name, 51712).unwrap();
    }

    #[test]
    fn who_has_a_driver_is_told_how_to_unbind_it() {
        let home = tempfile::tempdir().unwrap();
        assert!(no_driver(home.path(), 51728).is_ok(), "the kernel does not know it");
        let device = home.path().join("vbd-51728");
        std::fs::create_dir(&device).unwrap();
        assert!(no_driver(home.path(), 51728).is_ok(), "no driver is loaded");
        std::os::unix::fs::symlink("../../bus/xen/drivers/vbd", device.join("driver")).unwrap();
        let error = no_driver(home.path(), 51728).unwrap_err().to_string();
        let how = "echo vbd-51728 > /sys/bus/xen/drivers/vbd/unbind";
        assert!(error.contains("xvdb") && error.contains(how), "{error}");
    }
}
