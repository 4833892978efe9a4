//! Which interfaces a watcher serves.
//!
//! All of kind `vif` belong to the kernel's xen-netback where that is loaded, which takes each as soon as
//! it appears; there is no other kind that a toolstack makes.
//!
//! Source: `libxl_nic.c`, RELEASE-4.17; `sysfs-bus-xen-backend` of the kernel's ABI documentation.

use std::path::Path;

use hypervisor::Error;
use hypervisor::backend::Adopted;
use hypervisor::backend::watch::Choice;
use hypervisor::store::Store;

/// All of them.
#[derive(Clone, Copy, Debug)]
pub struct All;

/// Whether the kernel's backend is loaded in the system at `root`.
#[must_use]
pub fn kernel_serves(root: &Path) -> bool {
    root.join("sys/module/xen_netback").exists()
}

impl Choice for All {
    fn takes<S: Store + ?Sized>(&self, _: &S, _: Option<&Adopted>) -> Result<bool, Error> {
        Ok(true)
    }
}
