//! The keys of a disk that we make ourselves, as libxl writes them for those it makes.
//!
//! Source: `libxl_disk.c` (`device_disk_add`), RELEASE-4.17.

use hypervisor::backend::Order;

use crate::device::queues::Manner;
use crate::vdev::Vdev;

/// A disk at `vdev` over the image `params`, served by a backend of kind `backend`: `vbd`, or `vbd3`
/// where `vbd` is the kernel's.
#[must_use]
pub fn disk(
    backend: &'static str,
    vdev: Vdev,
    params: &str,
    read_only: bool,
    manner: Manner,
) -> Order {
    let number = vdev.number();
    let device = if manner.cdrom { "cdrom" } else { "disk" };
    let front = vec![
        ("virtual-device", number.to_string()),
        ("device-type", device.to_owned()),
        ("handle", number.to_string()),
    ];
    let back = vec![
        ("params", params.to_owned()),
        ("mode", if read_only { "r" } else { "w" }.to_owned()),
        ("type", "file".to_owned()),
        ("dev", vdev.to_string()),
        ("device-type", device.to_owned()),
        ("removable", u8::from(manner.removable).to_string()),
        ("bootable", "1".to_owned()),
    ];
    Order { backend, number, front, back }
}
