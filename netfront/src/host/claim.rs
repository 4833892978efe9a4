//! Seeing to it that nobody else in this domain uses an interface.

use hypervisor::Error;
use hypervisor::frontend::host::claim::{self, Wanted};

pub use hypervisor::frontend::host::claim::Claim;

/// Claims interface `number` of the domain that this machine is.
///
/// # Errors
///
/// A driver of the kernel's (xen-netfront) or another process has it; the error says what to do.
pub fn claim(number: u32) -> Result<Claim, Error> {
    claim::claim(&Wanted {
        kind: "vif",
        number,
        thing: "interface",
        name: &number.to_string(),
        program: "netfront",
        option: "--vif",
        before: "Take it down",
    })
}
