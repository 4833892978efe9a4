//! How two drivers of one device meet in the store.
//!
//! A toolstack makes a directory for either end ([`device`]); each end writes its own and reads the
//! other's ([`keys`]); a number in each, the [`State`], says how far that end has come; and what an
//! end offers is there before the state that promises it ([`handshake`]).
//!
//! ```text
//! /local/domain/<front>/device/vbd/51712      /local/domain/<back>/backend/vbd/<front>/51712
//!     backend, backend-id, state  <------------>  frontend, frontend-id, online, state
//!     ring-ref, event-channel, ...                features, sectors, ...
//!     (the frontend's, read by the backend)       (the backend's, read by the frontend)
//! ```
//!
//! Whoever reads the other end's directory reads what a peer wrote: every value is checked for
//! range when it is read, and one that is wrong is a [`PeerFault`](crate::PeerFault).
//!
//! Source: `io/xenbus.h` and `io/blkif.h` (state diagrams), RELEASE-4.17.

pub mod device;
pub mod handshake;
pub mod keys;
pub mod state;

pub use device::{Pair, Side};
pub use handshake::{Published, Seat};
pub use keys::Keys;
pub use state::{End, State};

#[cfg(test)]
mod tests;
