//! Xen block backend.
//!
//! The stages of the data path, in the order in which a request meets them:
//!
//! ```text
//! receive -> segments -> validate -> throttle -> acquire -> submit -> engine -> complete
//!                                                   -> release -> respond -> notify
//! ```
//!
//! One thread serves one queue ([`queue`]). What a request is between two stages is in [`request`];
//! when it counts as done, and what may pass what, in [`durability`].

// How a frontend and this backend come together.
pub mod connect;
pub mod device;
pub mod vdev;
pub mod watch;

// The path of a request.
pub mod receive;
pub mod segments;
pub mod validate;
pub mod throttle;
pub mod acquire;
pub mod submit;
pub mod engine;
pub mod complete;
pub mod release;
pub mod respond;
pub mod notify;

// What outlives the process.
pub mod journal;

// What lies behind the engines.
pub mod image;

// What holds the stages together.
pub mod durability;
pub mod policy;
pub mod queue;
pub mod request;
pub mod stats;

// How it is asked and told.
pub mod control;
