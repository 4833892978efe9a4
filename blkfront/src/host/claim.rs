//! Seeing to it that nobody else in this domain uses a disk.

use hypervisor::Error;
use hypervisor::frontend::host::claim::{self, Wanted};

use crate::vdev;

pub use hypervisor::frontend::host::claim::Claim;

/// Claims disk `number` of the domain that this machine is.
///
/// # Errors
///
/// A driver of the kernel's (xen-blkfront) or another process has it; the error says what to do.
pub fn claim(number: u32) -> Result<Claim, Error> {
    claim::claim(&Wanted {
        kind: "vbd",
        number,
        thing: "disk",
        name: &vdev::name(number),
        program: "blkfront",
        option: "--vdev",
        before: "Unmount what is on it",
    })
}
