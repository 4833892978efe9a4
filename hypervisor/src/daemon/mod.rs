//! What every daemon of ours has beside its devices.
//!
//! ```text
//!   signals ─────┐
//!   control ─────┴──> a device's mailbox      asked to end, asked to change
//!   outcome <──────── the daemon              what it says: on stdout, on stderr, to its supervisor
//!   program ─────────> the daemon             started once more, for one device
//!   takeover <───────> the daemon before      hands its device over, and ends
//!   machine            the first three, around a device of a virtual machine's
//!   mark               tells apart what processes leave for one another
//!   watcher            both of these, and control, for who starts daemons
//! ```
//!
//! Trust: a client of the control socket may ask for anything, and gets no more than bounded time
//! and memory.

pub mod control;
#[cfg(feature = "vhost-user")]
pub mod machine;
pub mod mark;
pub mod outcome;
pub mod program;
pub mod signals;
pub mod stats;
pub mod table;
pub mod takeover;
pub mod watcher;
