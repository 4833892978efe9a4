//! Which disks a watcher serves.
//!
//! Devices of kind `vbd` belong to the kernel's xen-blkback where that is loaded, which takes each
//! as soon as it appears. There, only those are ours that the script `block-domkit` has taken from
//! it: the script says so by `physical-device-path`, and the kernel has no driver at the device.
//!
//! Source: `libxl_disk.c` for the keys, RELEASE-4.17; `sysfs-bus-xen-backend` of the kernel's ABI
//! documentation for the paths under `/sys/bus/xen-backend`.

use std::path::{Path, PathBuf};

use hypervisor::Error;
use hypervisor::backend::watch::Choice;
use hypervisor::backend::{Adopted, Hotplug};
use hypervisor::store::Store;

use crate::device::Wish;

/// Disks that nobody else serves.
#[derive(Clone, Debug)]
pub struct Free {
    /// Only those that are configured for this image, by its full path.
    pub image: Option<PathBuf>,
    /// The root of the system in which the kernel's own backend could be, if one could.
    pub kernel: Option<PathBuf>,
}

/// Whether the kernel's backend is loaded in the system at `root`.
#[must_use]
pub fn kernel_serves(root: &Path) -> bool {
    root.join("sys/module/xen_blkback").exists()
}

impl Choice for Free {
    fn takes<S: Store + ?Sized>(&self, store: &S, device: Option<&Adopted>) -> Result<bool, Error> {
        let Some(device) = device else { return Ok(self.image.is_none()) };
        let spot = &device.spot;
        if spot.kind == "vbd"
            && let Some(root) = self.kernel.as_deref().filter(|root| kernel_serves(root))
        {
            let drivers = root.join("sys/bus/xen-backend/drivers/vbd");
            let held = drivers.join(format!("vbd-{}-{}", spot.front, spot.number)).exists();
            let taken = device.bytes(store, "physical-device-path")?.is_some();
            if device.hotplug != Hotplug::Ours || held || !taken {
                return Ok(false);
            }
        }
        let Some(image) = &self.image else { return Ok(true) };
        match Wish::read(store, device) {
            Ok(Some(wish)) => {
                Ok(std::fs::canonicalize(&wish.image).is_ok_and(|full| full == *image))
            }
            Ok(None) | Err(Error::Config(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
