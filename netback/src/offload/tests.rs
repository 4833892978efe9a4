use proptest::prelude::*;
use ring::wire::netif::fit::Takes;

use super::*;

/// TCP over IPv4 with ten bytes of payload, checksum zero.
fn tcp() -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    bytes.extend([0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    bytes.extend([7; 10]);
    bytes
}

fn said(gso: Option<Gso>, checksum: Checksum) -> Offload {
    Offload { checksum, gso, hash: None }
}

fn sent(packet: &mut [u8], offload: &Offload) -> Result<vnet::Header, Loss> {
    let headers = Headers::find(packet).ok();
    to_port(packet, headers.as_ref(), &Claims::from(*offload))
}

#[test]
fn a_blank_checksum_is_found_and_its_pseudo_header_summed_anew() {
    let mut packet = tcp();
    packet[50] = 0xEE;
    let header = sent(&mut packet, &said(None, Checksum::Blank)).unwrap();
    assert_eq!((header.flags, header.csum_start, header.csum_offset), (1, 34, 16));
    assert_eq!((header.gso_type, header.gso_size), (0, 0));
    // 10.0.0.1 + 10.0.0.2 + TCP + 30 bytes.
    assert_eq!(packet[50..52], (0x0A00_u16 * 2 + 3 + 6 + 30).to_be_bytes());
}

#[test]
fn segments_are_of_the_protocol_that_is_there() {
    let v4 = |size| Some(Gso::new(GsoProtocol::TcpV4, size));
    let v6 = Some(Gso::new(GsoProtocol::TcpV6, 1448));
    let header = sent(&mut tcp(), &said(v4(1448), Checksum::Unchecked)).unwrap();
    assert_eq!((header.gso_type, header.gso_size, header.hdr_len), (vnet::gso::TCPV4, 1448, 54));
    assert_eq!(header.flags, flags::NEEDS_CSUM, "whether or not it is said");
    for (offload, why) in [(v6, Loss::Segments), (v4(LEAST_SEGMENT - 1), Loss::Segments)] {
        assert_eq!(sent(&mut tcp(), &said(offload, Checksum::Blank)), Err(why));
    }
    let mut udp = tcp();
    (udp[23], udp[38], udp[39]) = (17, 0, 30);
    assert_eq!(sent(&mut udp, &said(v4(1448), Checksum::Blank)), Err(Loss::Segments));
    assert_eq!(sent(&mut udp, &said(None, Checksum::Blank)).map(|h| h.csum_offset), Ok(6));
    let mut arp = tcp();
    arp[13] = 6;
    assert_eq!(sent(&mut arp, &said(None, Checksum::Blank)), Err(Loss::NoTransport));
    let mut cut = tcp();
    cut.truncate(40);
    assert_eq!(sent(&mut cut, &said(None, Checksum::Blank)), Err(Loss::Headers));
}

#[test]
fn what_claims_nothing_is_passed_as_bytes() {
    let mut junk = vec![0xAB; 60];
    assert_eq!(sent(&mut junk, &Offload::default()), Ok(vnet::Header::default()));
    let valid = sent(&mut junk, &said(None, Checksum::Validated)).unwrap();
    assert_eq!(valid.flags, flags::DATA_VALID);
    assert_eq!(junk, [0xAB; 60]);
}

fn arrived(header: vnet::Header, packet: &[u8]) -> Buffer {
    let mut buffer = Buffer::new().unwrap();
    buffer.fill(&header, packet);
    buffer
}

const NEEDS: vnet::Header = vnet::Header {
    flags: flags::NEEDS_CSUM,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};
const BOTH: Sums = Sums { v4: true, v6: true };

#[test]
fn a_checksum_that_the_guest_would_not_find_is_completed() {
    let takes = Takes::default();
    let mut plain = arrived(NEEDS, &tcp());
    let blank = Inbound::Whole(said(None, Checksum::Blank), false);
    assert_eq!(from_port(&mut plain, &takes, BOTH), Ok(blank));
    // Of something inside: the guest would complete the outer one.
    let mut inner = arrived(vnet::Header { csum_start: 54, csum_offset: 2, ..NEEDS }, &tcp());
    let done = Inbound::Whole(said(None, Checksum::Validated), true);
    assert_eq!(from_port(&mut inner, &takes, BOTH), Ok(done));
    assert_eq!(inner.packet()[54..56], [7, 7]);
    let sum = !(0x0707_u16 * 5);
    assert_eq!(inner.packet()[56..58], sum.to_be_bytes());
}

#[test]
fn nothing_is_left_to_the_guest_behind_a_vlan_tag() {
    let mut takes = Takes::default();
    (takes.sg, takes.gso_tcpv4) = (true, true);
    let mut tagged = tcp();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let needs = vnet::Header { csum_start: 38, ..NEEDS };
    let mut small = arrived(needs, &tagged);
    let done = Inbound::Whole(said(None, Checksum::Validated), true);
    assert_eq!(from_port(&mut small, &takes, BOTH), Ok(done));
    let large = vnet::Header { gso_type: vnet::gso::TCPV4, gso_size: 99, ..needs };
    assert_eq!(from_port(&mut arrived(large, &tagged), &takes, BOTH), Ok(Inbound::Cut(99)));
    let plain = vnet::Header { csum_start: 34, ..large };
    let whole = said(Some(Gso::new(GsoProtocol::TcpV4, 99)), Checksum::Blank);
    let whole = Inbound::Whole(whole, false);
    assert_eq!(from_port(&mut arrived(plain, &tcp()), &takes, BOTH), Ok(whole));
}

#[test]
fn what_is_to_be_cut_is_as_long_as_it_is_whatever_ip_says() {
    let mut takes = Takes::default();
    (takes.sg, takes.gso_tcpv4) = (true, true);
    let large = vnet::Header { gso_type: vnet::gso::TCPV4, gso_size: 99, ..NEEDS };
    let gso = Some(Gso::new(GsoProtocol::TcpV4, 99));
    for claim in [0_u16, 44, 50, 51, u16::MAX] {
        let mut packet = tcp();
        packet[16..18].copy_from_slice(&claim.to_be_bytes());
        let mut buffer = arrived(large, &packet);
        let whole = Inbound::Whole(said(gso, Checksum::Blank), false);
        assert_eq!(from_port(&mut buffer, &takes, BOTH), Ok(whole), "{claim}");
        assert_eq!(buffer.packet()[16..18], [0, 50]);
        // Only what is to be cut is: elsewhere, what is behind IP's end is padding.
        let mut plain = arrived(NEEDS, &packet);
        let done = from_port(&mut plain, &takes, BOTH);
        assert_eq!(plain.packet()[16..18], claim.to_be_bytes(), "{done:?}");
    }
}

#[test]
fn nobody_is_asked_to_cut_what_is_in_a_tunnel() {
    let mut takes = Takes::default();
    (takes.sg, takes.gso_tcpv4, takes.gso_tcpv6) = (true, true, true);
    // UDP outside, as it is of VXLAN; and IPv4 in IPv4.
    let mut udp = tcp();
    (udp[23], udp[38], udp[39]) = (17, 0, 30);
    let mut ip = tcp();
    ip[23] = 4;
    for packet in [udp, ip] {
        for gso_type in [vnet::gso::TCPV4, vnet::gso::TCPV6, vnet::gso::UDP_L4] {
            let header = vnet::Header { gso_type, gso_size: 99, csum_start: 44, ..NEEDS };
            let mut buffer = arrived(header, &packet);
            assert_eq!(from_port(&mut buffer, &takes, BOTH), Err(Loss::Tunnel), "{gso_type}");
        }
    }
}

#[test]
fn what_a_port_cannot_say_is_lost() {
    let takes = Takes::default();
    for header in [
        vnet::Header { csum_start: 65_000, ..NEEDS },
        vnet::Header { csum_start: 60, csum_offset: 3, ..NEEDS },
        vnet::Header { gso_type: vnet::gso::TCPV6, gso_size: 1448, ..NEEDS },
        vnet::Header { gso_type: vnet::gso::TCPV4, gso_size: LEAST_SEGMENT - 1, ..NEEDS },
        vnet::Header { gso_type: 77, gso_size: 1448, ..NEEDS },
        vnet::Header { flags: 0, gso_type: vnet::gso::TCPV4, gso_size: 1448, ..NEEDS },
    ] {
        let mut buffer = arrived(header, &tcp());
        assert_eq!(from_port(&mut buffer, &takes, BOTH), Err(Loss::PortHeader), "{header:?}");
    }
    let header =
        vnet::Header { gso_type: vnet::gso::TCPV4 | vnet::gso::ECN, gso_size: 99, ..NEEDS };
    assert_eq!(from_port(&mut arrived(header, &tcp()), &takes, BOTH), Ok(Inbound::Cut(99)));
}

proptest! {
    #[test]
    fn no_bytes_and_no_header_panic(
        header: [u8; vnet::Header::SIZE],
        mut packet in prop::collection::vec(any::<u8>(), 14..200),
        size: u16,
    ) {
        if let Some(room) = packet.get_mut(12..15) {
            room.copy_from_slice(&[8, 0, 0x45]);
        }
        let mut buffer = arrived(vnet::Header::decode(&header), &packet);
        let _ = from_port(&mut buffer, &Takes::default(), Sums { v4: false, v6: true });
        let gso = Some(Gso::new(GsoProtocol::TcpV4, size));
        let _ = sent(&mut packet, &said(gso, Checksum::Blank));
    }
}
