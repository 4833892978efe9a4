//! The flow that a packet belongs to, as the network protocol's hashes see it.
//!
//! Source: `XEN_NETIF_CTRL_HASH_TYPE_*` in io/netif.h (RELEASE-4.17). It gives positions in packets
//! without options; here the same fields are found where they are.

use super::headers::{Addresses, Headers, Protocol};
use super::toeplitz::Key;
use crate::wire::netif::control::{Algorithm, HashTypes};
use crate::wire::netif::extra::Hash;

/// Two addresses and, for TCP, two ports: what hashes are taken over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Source and destination address, source and destination port.
    input: [u8; Self::MOST],
    addresses: usize,
    ports: bool,
}

impl Flow {
    /// IPv6 addresses and ports.
    const MOST: usize = 36;
    const V4: usize = 8;
    const PORTS: usize = 4;

    /// That of the `packet` that `headers` were found in, where it is IP.
    #[inline]
    #[must_use]
    pub fn of(packet: &[u8], headers: &Headers) -> Option<Self> {
        let ip = headers.ip.as_ref()?;
        let from = packet.get(ip.addresses.range())?;
        let mut input = [0; Self::MOST];
        input.get_mut(..from.len())?.copy_from_slice(from);
        let mut flow = Self { input, addresses: from.len(), ports: false };
        if let Some(transport) = ip.transport.filter(|found| found.protocol == Protocol::Tcp) {
            let ports = packet.get(transport.at..)?.first_chunk::<{ Self::PORTS }>()?;
            *flow.input.get_mut(from.len()..)?.first_chunk_mut()? = *ports;
            flow.ports = true;
        }
        debug_assert_eq!(
            matches!(ip.addresses, Addresses::V4(_)),
            flow.addresses == Self::V4,
            "the addresses of IPv4 are 8 bytes"
        );
        Some(flow)
    }

    /// Its Toeplitz hash over as much as `types` has of it, or `None` where that is nothing.
    #[inline]
    #[must_use]
    pub fn hash(&self, types: HashTypes, key: &Key) -> Option<Hash> {
        let (plain, tcp) = if self.addresses == Self::V4 { (0, 1) } else { (2, 3) };
        let asked = |of: u8| types.0 & (1 << of) != 0;
        let (of, len) = if self.ports && asked(tcp) {
            (tcp, self.addresses.saturating_add(Self::PORTS))
        } else if asked(plain) {
            (plain, self.addresses)
        } else {
            return None;
        };
        let value = key.hash(self.input.get(..len)?);
        Some(Hash { of, algorithm: Algorithm::TOEPLITZ, value })
    }
}

#[cfg(test)]
mod tests;
