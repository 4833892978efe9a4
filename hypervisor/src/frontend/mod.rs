//! What the frontends of all kinds of device have in common: the device's life in the store, pages
//! that data is bounced through, and pages that a backend will not let go of.
//!
//! A driver says what its kind of device negotiates ([`Kind`]); [`Device`] takes it from the first
//! offer of a backend to the end, through backends that vanish and come back. `host` follows the store
//! on a thread, for a Linux process.
//!
//! The backend is not trusted: every key is read with a range, each time anew, and a page that it
//! still has mapped is never used again.

pub mod device;
#[cfg(feature = "std")]
pub mod host;
mod kind;
pub mod pool;
pub mod quarantine;
mod steps;

pub use device::{Device, Ending, Phase, Step};
pub use kind::{Kind, Platform, Retire};
pub use pool::{Page, Pool};
pub use quarantine::Quarantine;
