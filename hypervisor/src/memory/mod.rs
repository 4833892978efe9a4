//! Pages that one domain grants and another uses.
//!
//! [`granting`] is the side that owns the pages (a frontend, as a rule); [`using`] is the side that
//! maps or copies them; [`access`] is how either touches bytes that the other may be writing at
//! that very moment; [`status`] is what the hypervisor says of each operation;
//! [`ram`] is memory that nobody grants, of a whole virtual machine.

pub mod access;
pub mod granting;
pub mod ram;
pub mod status;
pub mod using;

pub use access::{Memory, OutOfRange};
pub use granting::{Access, Granting, Revoked};
pub use ram::{Outside, Ram};
pub use status::GrantStatus;
pub use using::{CopyOp, Direction, MapFailed, Using};
