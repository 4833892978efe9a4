//! What is left to others of a packet, both ways, and what a driver may not claim.

use netback::vnet::{Header, flags, gso};
use ring::packet::Sum;
use ring::wire::virtio_net::feature;

use super::scene::{ABLE, Machine, Served, USUAL, eventually, tcp};

/// Where a checksum of [`tcp`] is, and that it is blank.
const BLANK: Header = Header {
    flags: flags::NEEDS_CSUM,
    gso_type: gso::NONE,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};
const LARGE: Header = Header { gso_type: gso::TCPV4, gso_size: 1448, ..BLANK };

fn sent(header: &Header, packet: &[u8]) -> Vec<u8> {
    [&header.encode()[..], packet].concat()
}

fn apart(bytes: &[u8]) -> (Header, &[u8]) {
    let (header, packet) = bytes.split_first_chunk().unwrap();
    (Header::decode(header), packet)
}

/// Whether TCP's checksum is right.
fn is_right(packet: &[u8]) -> bool {
    let len = (packet.len() - 34) as u16;
    let pseudo = [&packet[26..34], &[0, 6], &len.to_be_bytes()[..]].concat();
    Sum::of(&[&pseudo[..], &packet[34..]].concat()).checksum() == 0
}

#[test]
fn a_large_packet_crosses_in_one_piece() {
    let served = Served::new();
    let mut machine = Machine::new(&served, ABLE);
    for n in 0..2 {
        machine.rx.post(n, 0x8000 - 8);
    }
    machine.tx.send(&sent(&LARGE, &tcp(50_000)), &[12, 54], true);
    let came = machine.rx.receive();
    let (header, packet) = apart(&came);
    assert_eq!((header.gso_type, header.gso_size, header.num_buffers), (gso::TCPV4, 1448, 2));
    assert_eq!((header.flags, header.csum_start, header.csum_offset), (1, 34, 16));
    assert_eq!(packet.len(), 54 + 50_000);
    // Only the sum in the checksum's place is another.
    assert_eq!(packet[54..], tcp(50_000)[54..]);
    let counted = served.counted();
    assert_eq!((counted.tx_gso, counted.rx_gso, counted.rx_cut), (1, 1, 0));
}

#[test]
fn what_a_driver_cuts_not_is_cut_and_what_it_sums_not_is_summed() {
    let served = Served::new();
    let sending = feature::CSUM | feature::HOST_TSO4;
    for sums in [feature::GUEST_CSUM, 0] {
        let mut machine = Machine::new(&served, USUAL | sending | sums);
        for n in 0..4 {
            machine.rx.post(n, 0x1000);
        }
        machine.tx.send(&sent(&LARGE, &tcp(5000)), &[], false);
        let mut payload: Vec<u8> = Vec::new();
        for n in 0..4 {
            let came = machine.rx.receive();
            let (header, packet) = apart(&came);
            assert_eq!((header.gso_type, header.num_buffers), (gso::NONE, 1));
            assert_eq!(header.flags == flags::NEEDS_CSUM, sums != 0, "{header:?}");
            assert_eq!(is_right(packet), sums == 0, "segment {n}");
            payload.extend(&packet[54..]);
        }
        assert!(payload[..] == tcp(5000)[54..], "the segments are the packet");
    }
    let counted = served.counted();
    assert_eq!((counted.rx_cut, counted.rx_summed), (2, 4));
}

#[test]
fn a_blank_checksum_is_completed_wherever_it_is() {
    let served = Served::new();
    let mut machine = Machine::new(&served, USUAL | feature::CSUM);
    // Where TCP has it, and of something inside that only the driver knows.
    let inside = Header { csum_start: 60, csum_offset: 8, ..BLANK };
    for header in [BLANK, inside] {
        machine.rx.post(0, 0x1000);
        let packet = tcp(100);
        machine.tx.send(&sent(&header, &packet), &[], false);
        let came = machine.rx.receive();
        let (said, came) = apart(&came);
        assert_eq!(said.flags, 0, "nothing is left to do");
        if header == BLANK {
            assert!(is_right(came));
        } else {
            let sum = Sum::of(&packet[60..]).checksum();
            assert_eq!(came[68..70], sum.to_be_bytes());
            assert_eq!((&came[..68], &came[70..]), (&packet[..68], &packet[70..]));
        }
    }
}

#[test]
fn a_header_that_lies_loses_its_packet_and_no_other() {
    let served = Served::new();
    let mut machine = Machine::new(&served, ABLE);
    let at = |csum_start, csum_offset| Header { csum_start, csum_offset, ..BLANK };
    let mut count = |header: Header, packet: &[u8], why: &str| {
        let before = served.lost(why);
        machine.tx.send(&sent(&header, packet), &[], false);
        eventually(why, || served.lost(why) == before + 1);
    };
    let packet = tcp(100);
    // A checksum beyond the packet, or across its end, or nowhere.
    for header in [at(65_000, 16), at(34, 65_000), at(u16::MAX, u16::MAX), at(153, 0)] {
        count(header, &packet, "checksum_place");
    }
    // Segments without a size, or of hardly any.
    for gso_size in [0, 1, 15] {
        count(Header { gso_size, ..LARGE }, &packet, "segments");
    }
    // Of a protocol that the packet is not of, that was not agreed on, or that there is not.
    for gso_type in [gso::TCPV6, gso::UDP_L4, gso::TCPV4 | gso::ECN, 3, 77, 0x80 | 77] {
        count(Header { gso_type, ..LARGE }, &packet, "segments");
    }
    // Large, with a checksum where nobody would look for it.
    count(Header { csum_start: 20, ..LARGE }, &packet, "checksum_place");
    // Nothing to be cut: no TCP, or half of it.
    let mut arp = tcp(100);
    arp[12..14].copy_from_slice(&[8, 6]);
    count(LARGE, &arp, "checksum_place");
    count(Header { flags: 0, ..LARGE }, &arp, "no_transport");
    count(Header { flags: 0, ..LARGE }, &packet[..40], "headers");
    // No packet at all, and one that is larger than any.
    count(Header::default(), &[], "too_short");
    count(Header::default(), &[7; 13], "too_short");
    count(Header::default(), &vec![7; 70_000], "too_large");
    // How many buffers there are means nothing on the way out.
    machine.rx.post(0, 0x1000);
    let odd = Header { num_buffers: 999, hdr_len: 999, ..BLANK };
    machine.tx.send(&sent(&odd, &packet), &[], false);
    assert_eq!(apart(&machine.rx.receive()).0.num_buffers, 1);
    machine.there_and_back(&tcp(1000));
}

#[test]
fn a_machine_sends_as_itself_only() {
    let served = Served::of(|policy| policy.sources.mac = Some(super::scene::MAC));
    let mut machine = Machine::new(&served, ABLE);
    let mut forged = tcp(100);
    forged[11] = 9;
    machine.tx.send(&sent(&Header::default(), &forged), &[], false);
    eventually("it is lost", || served.lost("source") == 1);
    machine.there_and_back(&tcp(100));
}
