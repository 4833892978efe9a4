//! Talking to a running daemon: what it serves, how that goes, and changes to it.
//!
//! One JSON object a line, over a Unix socket that only the daemon's user can reach:
//!
//! ```text
//! ctl     {"command":"limits","iops":1000}
//! daemon  {"result":{"iops":1000,"bytes":null}}
//! ctl     {"command":"resize","size":1}
//! daemon  {"error":"size '1': not a multiple of the sector size, 512"}
//! ```
//!
//! Trust: whoever may connect may also detach the disk, but cannot make the daemon wait, grow or
//! fall: lines, clients and their time are bounded.

pub mod client;
pub mod message;
pub mod server;
pub mod socket;

pub use client::Client;
pub use message::{Request, Response};
pub use server::{Desk, Server};

#[cfg(test)]
mod tests;
