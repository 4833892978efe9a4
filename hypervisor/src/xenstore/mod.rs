//! The store's wire protocol, and both ends of it.
//!
//! ```text
//!   store::{Store, Transactions, Watches}         what drivers name
//!        |
//!     client      one connection: a request, its reply, events between them
//!        |
//!      wire       header and payload, permission strings, error names
//!        |   Unix socket; xenstored's own, or ...
//!     server      ... ours: the tree, transactions, watches, permissions, quotas
//! ```
//!
//! The protocol is the genuine one, so the client talks to a real `xenstored` and stock clients
//! (`xenstore-ls` and its kin) talk to the server.
//!
//! A client trusts its store: a store that breaks the protocol ends the connection. The server
//! trusts nobody but domain 0: another domain's bytes can make it refuse requests, close that
//! domain's connection, or hold back its replies, and nothing else.
//!
//! Source: `io/xs_wire.h` and `docs/misc/xenstore.txt`, RELEASE-4.17.

pub mod client;
pub mod path;
pub mod server;
pub mod wire;

pub use client::Client;
