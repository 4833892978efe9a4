//! The checksum of TCP and UDP: leaving it to others, doing it for others, and checking it.
//!
//! A sender that leaves the checksum to others writes the sum of the pseudo-header into its field
//! and says that it is blank (`csum_blank`; virtio's `NEEDS_CSUM` with [`Checksum::start`] as
//! `csum_start` and [`Checksum::offset`] as `csum_offset`). Whoever completes it need only add up
//! from the start of the transport header on. Here it is completed from nothing instead, because
//! what a peer left in the field is as little to be believed as the rest.
//!
//! Source: RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1; virtio 1.2 section 5.1.6.

use super::headers::{Addresses, Headers, Malformed, Protocol};
use super::{Sum, headers};

/// Why a packet has no checksum that could be completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoChecksum {
    /// Its headers cannot be followed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is neither TCP nor UDP, or not a whole packet of that.
    #[error("there is no whole TCP or UDP in EtherType {ether_type:#06x}")]
    NoTransport {
        /// What it is.
        ether_type: u16,
    },
}

impl NoChecksum {
    /// A short, constant name, to count by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Malformed(malformed) => malformed.name(),
            Self::NoTransport { .. } => "no_transport",
        }
    }
}

/// Where the transport checksum of a packet is, and what it is taken over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checksum {
    /// Where the sum begins: the transport header.
    pub start: usize,
    /// Where the checksum is, from there.
    pub offset: usize,
    /// Where the sum ends.
    end: usize,
    addresses: Addresses,
    protocol: Protocol,
}

impl Checksum {
    /// That of `packet`.
    ///
    /// # Errors
    ///
    /// [`NoChecksum`].
    pub fn find(packet: &[u8]) -> Result<Self, NoChecksum> {
        Self::of(packet, &Headers::find(packet)?)
    }

    /// That of the `packet` that `headers` were found in.
    ///
    /// # Errors
    ///
    /// [`NoChecksum`].
    pub fn of(packet: &[u8], headers: &Headers) -> Result<Self, NoChecksum> {
        let none = NoChecksum::NoTransport { ether_type: headers.ether_type };
        let ip = headers.ip.as_ref().ok_or(none)?;
        let transport = ip.transport.ok_or(none)?;
        let (start, protocol) = (transport.at, transport.protocol);
        let end = match protocol {
            Protocol::Tcp => ip.end,
            // UDP has a length of its own, which may be less than what IP has room for.
            Protocol::Udp => {
                let malformed = Malformed::Transport { number: protocol.number(), at: start };
                let len = headers::word(packet, start.saturating_add(4)).ok_or(malformed)?;
                let end = start.saturating_add(usize::from(len));
                if end < transport.payload || end > ip.end {
                    return Err(malformed.into());
                }
                end
            }
        };
        let addresses = ip.addresses.clone();
        Ok(Self { start, offset: protocol.checksum_offset(), end, addresses, protocol })
    }

    /// Which protocol's it is.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Writes the sum of the pseudo-header where the checksum belongs: it is left to others.
    pub fn leave_blank(&self, packet: &mut [u8]) {
        let sum = self.pseudo(packet).sum();
        self.put(packet, sum);
    }

    /// Writes the checksum, whatever was in its place. `packet` is the one that this was found in.
    pub fn complete(&self, packet: &mut [u8]) {
        self.put(packet, 0);
        let checksum = self.sum(packet).checksum();
        // In UDP zero would say that there is no checksum; all ones is the same number.
        let none = checksum == 0 && self.protocol == Protocol::Udp;
        self.put(packet, if none { u16::MAX } else { checksum });
    }

    /// Whether the packet is as it was when its checksum was made. UDP over IPv4 need not have one.
    #[must_use]
    pub fn is_right(&self, packet: &[u8]) -> bool {
        let field = headers::word(packet, self.start.saturating_add(self.offset));
        let optional = self.protocol == Protocol::Udp && matches!(self.addresses, Addresses::V4(_));
        (optional && field == Some(0)) || self.sum(packet).is_right()
    }

    /// The pseudo-header: addresses, protocol, length.
    fn pseudo(&self, packet: &[u8]) -> Sum {
        let len = self.end.saturating_sub(self.start);
        // Less than 2^16, as it comes from fields of 16 bits; both pseudo-headers have it in as
        // many zero bytes as they like, which add nothing.
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        let addresses = packet.get(self.addresses.range()).unwrap_or_default();
        Sum::of(addresses).and_word(u16::from(self.protocol.number())).and_word(len)
    }

    fn sum(&self, packet: &[u8]) -> Sum {
        self.pseudo(packet).and(packet.get(self.start..self.end).unwrap_or_default())
    }

    fn put(&self, packet: &mut [u8], value: u16) {
        let at = self.start.saturating_add(self.offset);
        let room = packet.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
        if let Some(room) = room {
            *room = value.to_be_bytes();
        }
    }
}

/// Writes the checksum of the IPv4 header of `packet`, where it has one.
pub fn complete_ipv4(packet: &mut [u8], headers: &Headers) {
    let Some(ip) = &headers.ip else { return };
    let Addresses::V4(_) = ip.addresses else { return };
    let Some(header) = packet.get_mut(ip.at..) else { return };
    let Some(first) = header.first() else { return };
    let len = usize::from(first & 0xF).saturating_mul(4);
    let Some(header) = header.get_mut(..len) else { return };
    let Some(room) = header.get_mut(10..12) else { return };
    room.fill(0);
    let checksum = Sum::of(header).checksum();
    if let Some(room) = header.get_mut(10..12) {
        room.copy_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
