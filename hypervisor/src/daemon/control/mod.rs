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
//! What is asked, and what is answered, is each daemon's own: any type that serde knows. Trust: whoever
//! may connect may also take the device away, but cannot make the daemon wait, grow or
//! fall: lines, clients and their time are bounded.

pub mod client;
pub mod server;
pub mod socket;

pub use client::Client;
pub use server::{Desk, Server};

use serde::{Deserialize, Serialize};

/// The longest line either side takes, in bytes with its newline.
pub const LONGEST_REQUEST: usize = 4096;
/// The longest answer, in bytes with its newline.
pub const LONGEST_RESPONSE: usize = 1 << 20;

/// What comes back: a result, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// As the daemon's requests say.
    Result(serde_json::Value),
    /// In words, for whoever asked.
    Error(String),
}

#[cfg(test)]
mod tests;
