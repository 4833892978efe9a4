//! The header that stands in front of a packet on a TAP, and what it says of the packet.
//!
//! ```text
//!  0     1        2        4        6           8            10          12
//!  +-----+--------+--------+--------+-----------+------------+-----------+
//!  |flags|gso type|hdr_len |gso_size|csum_start |csum_offset |num_buffers|
//!  +-----+--------+--------+--------+-----------+------------+-----------+
//! ```
//!
//! Where a backend only says *that* a checksum is blank, the kernel wants to know where it is: that is
//! found in a copy of the packet's headers, which is the one that the kernel is then given.
//!
//! Little-endian. Source: `virtio_net_hdr` in section 5.1.6 of virtio 1.2. Units: bytes.

use ring::packet::{Addresses, Headers};
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::extra::{Gso, GsoProtocol};

/// Bytes of one, with `num_buffers`.
pub(super) const SIZE: usize = 12;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// What the kernel says of a packet; `None` where that cannot be told to a backend.
pub(super) fn decode(header: &[u8; SIZE]) -> Option<Offload> {
    let [flags, gso_type, _, _, a, b, ..] = *header;
    let size = u16::from_le_bytes([a, b]);
    let gso = match gso_type {
        GSO_NONE => None,
        GSO_TCPV4 => Some(Gso::new(GsoProtocol::TcpV4, size)),
        GSO_TCPV6 => Some(Gso::new(GsoProtocol::TcpV6, size)),
        _ => return None,
    };
    let checksum = if flags & NEEDS_CSUM != 0 {
        Checksum::Blank
    } else if flags & DATA_VALID != 0 {
        Checksum::Validated
    } else {
        Checksum::Unchecked
    };
    Some(Offload { checksum, gso, hash: None })
}

/// What the kernel is told of a packet of `size` bytes that begins with `head`; `None` where what the
/// backend says of it cannot be.
pub(super) fn encode(offload: &Offload, head: &[u8], size: usize) -> Option<[u8; SIZE]> {
    let mut header = [0; SIZE];
    let [
        flags,
        gso_type,
        len_low,
        len_high,
        size_low,
        size_high,
        start_low,
        start_high,
        at_low,
        at_high,
        ..,
    ] = &mut header;
    if offload.gso.is_none() && offload.checksum != Checksum::Blank {
        *flags = if offload.checksum == Checksum::Validated { DATA_VALID } else { 0 };
        return Some(header);
    }
    let found = Headers::find_in(head, size).ok()?;
    let transport = found.transport()?;
    let narrow = |value: usize| u16::try_from(value).ok().map(u16::to_le_bytes);
    *flags = NEEDS_CSUM;
    [*start_low, *start_high] = narrow(transport.at)?;
    [*at_low, *at_high] = narrow(transport.protocol.checksum_offset())?;
    if let Some(gso) = offload.gso {
        let v4 = matches!(found.ip.as_ref()?.addresses, Addresses::V4(_));
        *gso_type = match gso.protocol()? {
            GsoProtocol::TcpV4 if v4 => GSO_TCPV4,
            GsoProtocol::TcpV6 if !v4 => GSO_TCPV6,
            _ => return None,
        };
        if transport.protocol != ring::packet::Protocol::Tcp {
            return None;
        }
        [*len_low, *len_high] = narrow(transport.payload)?;
        [*size_low, *size_high] = gso.size.to_le_bytes();
    }
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TCP over IPv4 with 100 bytes of payload.
    fn tcp() -> Vec<u8> {
        let mut packet = vec![2; 12];
        packet.extend([0x08, 0x00, 0x45, 0, 0, 140, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10]);
        packet.extend([0; 6 + 100]);
        packet
    }

    #[test]
    fn what_is_said_lies_where_virtio_has_it() {
        let gso = Some(Gso::new(GsoProtocol::TcpV4, 0x0102));
        let offload = Offload { checksum: Checksum::Blank, gso, hash: None };
        let packet = tcp();
        // Flags, type, header length 54, segment size, start 34, offset 16.
        let bytes = [1, 1, 54, 0, 2, 1, 34, 0, 16, 0, 0, 0];
        assert_eq!(encode(&offload, &packet[..60], packet.len()), Some(bytes));
        assert_eq!(decode(&bytes), Some(offload));
    }

    #[test]
    fn what_needs_no_headers_is_said_without() {
        for (checksum, flags) in [(Checksum::Unchecked, 0), (Checksum::Validated, 2)] {
            let offload = Offload { checksum, ..Offload::default() };
            let header = encode(&offload, &[], 60).unwrap();
            assert_eq!(header, [flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(decode(&header), Some(offload));
        }
    }

    #[test]
    fn what_cannot_be_is_not_said() {
        let blank = Offload { checksum: Checksum::Blank, ..Offload::default() };
        let packet = tcp();
        assert_eq!(encode(&blank, &packet[..40], packet.len()), None, "headers are cut off");
        let v6 = Offload { gso: Some(Gso::new(GsoProtocol::TcpV6, 1000)), ..blank };
        assert_eq!(encode(&v6, &packet, packet.len()), None, "another protocol");
        let mut udp = packet.clone();
        udp[23] = 17;
        let v4 = Offload { gso: Some(Gso::new(GsoProtocol::TcpV4, 1000)), ..blank };
        assert!(encode(&blank, &udp, udp.len()).is_some());
        assert_eq!(encode(&v4, &udp, udp.len()), None, "UDP is not cut");
        assert_eq!(decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UDP fragments");
    }
}
