//! What is in a network packet, as far as either end of a device needs to know: where its headers
//! are, its checksums, and the hash of its flow.
//!
//! Packets are contiguous bytes from the Ethernet header on, private copies. Whoever sent them is
//! not trusted: every length in a packet is a claim, checked against the bytes that are there.
//! Nothing here allocates, and nothing changes a packet but where it says so.
//!
//! Not done here: reassembling fragments, looking into tunnels, following IPv6 routing headers.
//! A packet of that kind has no transport header as far as this module can tell.

pub mod checksum;
pub mod flow;
pub mod headers;
pub mod segment;
pub mod steering;
pub mod toeplitz;
pub mod transport;
pub mod vnet;

pub use checksum::Sum;
pub use headers::{Addresses, Headers, Malformed, Protocol, Transport};

#[cfg(test)]
mod made;
