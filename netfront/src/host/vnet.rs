//! What a packet's header on a TAP says, and what a backend is told of it, in each other's words.
//!
//! Where a backend only says *that* a checksum is blank, the kernel wants to know where it is: that is
//! found in a copy of the packet's headers, which is the one that the kernel is then given.
//!
//! The header is [`Header`]. Units: bytes.

use ring::packet::vnet::{Header, flags, gso};
use ring::packet::{Addresses, Headers};
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::extra::{Gso, GsoProtocol};

/// Bytes of one, with `num_buffers`.
pub(super) const SIZE: usize = Header::SIZE;

/// What the kernel says of a packet; `None` where that cannot be told to a backend.
pub(super) fn decode(header: &[u8; SIZE]) -> Option<Offload> {
    let header = Header::decode(header);
    let gso = match header.gso_type {
        gso::NONE => None,
        gso::TCPV4 => Some(Gso::new(GsoProtocol::TcpV4, header.gso_size)),
        gso::TCPV6 => Some(Gso::new(GsoProtocol::TcpV6, header.gso_size)),
        _ => return None,
    };
    let checksum = if header.flags & flags::NEEDS_CSUM != 0 {
        Checksum::Blank
    } else if header.flags & flags::DATA_VALID != 0 {
        Checksum::Validated
    } else {
        Checksum::Unchecked
    };
    Some(Offload { checksum, gso, hash: None })
}

/// What the kernel is told of a packet of `size` bytes that begins with `head`; `None` where what the
/// backend says of it cannot be.
pub(super) fn encode(offload: &Offload, head: &[u8], size: usize) -> Option<[u8; SIZE]> {
    let mut header = Header::default();
    if offload.gso.is_none() && offload.checksum != Checksum::Blank {
        header.flags = if offload.checksum == Checksum::Validated { flags::DATA_VALID } else { 0 };
        return Some(header.encode());
    }
    let found = Headers::find_in(head, size).ok()?;
    let transport = found.transport()?;
    let narrow = |value: usize| u16::try_from(value).ok();
    header.flags = flags::NEEDS_CSUM;
    header.csum_start = narrow(transport.at)?;
    header.csum_offset = narrow(transport.protocol.checksum_offset())?;
    if let Some(asked) = offload.gso {
        let v4 = matches!(found.ip.as_ref()?.addresses, Addresses::V4(_));
        header.gso_type = match asked.protocol()? {
            GsoProtocol::TcpV4 if v4 => gso::TCPV4,
            GsoProtocol::TcpV6 if !v4 => gso::TCPV6,
            _ => return None,
        };
        if transport.protocol != ring::packet::Protocol::Tcp {
            return None;
        }
        header.hdr_len = narrow(transport.payload)?;
        header.gso_size = asked.size;
    }
    Some(header.encode())
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
