use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::packet::made::{Made, any_made};

fn found(made: &Made) -> Headers {
    Headers::find(&made.bytes()).unwrap()
}

#[test]
fn headers_are_found_behind_what_stands_before_them() {
    let mut made = Made::plain(false, true);
    let ip = found(&made).ip.unwrap();
    assert_eq!((ip.at, ip.end, ip.number, ip.fragment), (14, 59, 6, false));
    assert_eq!(ip.addresses, Addresses::V4(26..34));
    let tcp = Transport { protocol: Protocol::Tcp, at: 34, payload: 54 };
    assert_eq!(ip.transport, Some(tcp));

    made.tags = vec![0x88A8, 0x8100];
    made.options = vec![1; 40];
    made.tcp_options = 12;
    let headers = found(&made);
    assert_eq!((headers.tags, headers.ether_type), (2, 0x0800));
    assert_eq!(
        headers.transport(),
        Some(Transport { protocol: Protocol::Tcp, at: 82, payload: 114 })
    );

    let mut made = Made::plain(true, false);
    made.extensions = vec![(0, vec![0; 8]), (43, vec![0; 8]), (44, vec![0; 8])];
    let ip = found(&made).ip.unwrap();
    assert_eq!(ip.addresses, Addresses::V6(22..54));
    let udp = Transport { protocol: Protocol::Udp, at: 78, payload: 86 };
    assert_eq!((ip.number, ip.transport), (17, Some(udp)));
}

#[test]
fn what_is_not_ip_has_no_more_headers() {
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(Headers::find(&arp), Ok(Headers { tags: 0, ether_type: 0x0806, ip: None }));
    // A third tag is not looked behind.
    let mut made = Made::plain(false, true);
    made.tags = vec![0x8100; 3];
    assert_eq!(found(&made), Headers { tags: 2, ether_type: 0x8100, ip: None });
    let mut icmp = Made::plain(false, false).bytes();
    icmp[23] = 1;
    let ip = Headers::find(&icmp).unwrap().ip.unwrap();
    assert_eq!((ip.number, ip.transport), (1, None));
}

#[test]
fn a_fragment_has_no_transport_header() {
    let mut v4 = Made::plain(false, true).bytes();
    for field in [[0x20, 0], [0x3F, 0xFF], [0, 1]] {
        v4[20..22].copy_from_slice(&field);
        let ip = Headers::find(&v4).unwrap().ip.unwrap();
        assert_eq!((ip.fragment, ip.transport), (true, None));
    }
    // Behind a fragment header that is one, nothing is looked for.
    let mut v6 = Made::plain(true, true);
    v6.extensions = vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 0]), (60, vec![0xFF; 8])];
    let ip = found(&v6).ip.unwrap();
    assert_eq!((ip.fragment, ip.transport, ip.number), (true, None, 60));
}

#[test]
fn a_routing_header_with_segments_left_hides_the_transport() {
    let mut made = Made::plain(true, true);
    made.extensions = vec![(43, vec![0, 0, 4, 1, 0, 0, 0, 0])];
    let ip = found(&made).ip.unwrap();
    assert_eq!((ip.number, ip.fragment, ip.transport), (6, false, None));
}

#[test]
fn lengths_that_reach_past_the_packet_are_malformed() {
    assert_eq!(Headers::find(&[0; 13]), Err(Malformed::Ethernet { len: 13 }));
    let mut made = Made::plain(false, true);
    made.tags = vec![0x8100];
    let ethernet = Malformed::Ethernet { len: 17 };
    assert_eq!(Headers::find(&made.bytes()[..17]), Err(ethernet));

    let v4 = Made::plain(false, true).bytes();
    let wrong = |at: usize, byte: u8| {
        let mut bytes = v4.clone();
        bytes[at] = byte;
        Headers::find(&bytes).unwrap_err()
    };
    let ip = Malformed::Ip { version: 4, at: 14, len: 59 };
    // The version, a header of 16 bytes, and a total that is too long or too short.
    for (at, byte) in [(14, 0x65), (14, 0x44), (17, 46), (16, 0xFF), (17, 19)] {
        assert_eq!(wrong(at, byte), ip);
    }
    let transport = |number| Malformed::Transport { number, at: 34 };
    // A TCP header of 16 bytes, one of 60, and no room for one.
    for (at, byte) in [(46, 0x40), (46, 0xF0), (17, 39)] {
        assert_eq!(wrong(at, byte), transport(6));
    }
    let mut udp = Made::plain(false, false).bytes();
    udp[17] = 27;
    assert_eq!(Headers::find(&udp), Err(transport(17)));

    let mut made = Made::plain(true, true);
    made.extensions = vec![(60, vec![0, 99, 0, 0, 0, 0, 0, 0])];
    let extension = Malformed::Extension { number: 60, at: 54 };
    assert_eq!(Headers::find(&made.bytes()), Err(extension));
    assert_eq!(extension.name(), "ipv6_extension");
    let mut v6 = Made::plain(true, true).bytes();
    v6[18..20].copy_from_slice(&[0xFF, 0xFF]);
    assert_eq!(Headers::find(&v6), Err(Malformed::Ip { version: 6, at: 14, len: 79 }));
}

#[test]
fn extensions_have_an_end() {
    let mut made = Made::plain(true, true);
    made.extensions = vec![(60, vec![0; 8]); MOST_EXTENSIONS];
    assert!(found(&made).transport().is_some());
    made.extensions.push((60, vec![0; 8]));
    assert!(matches!(Headers::find(&made.bytes()), Err(Malformed::Extension { .. })));
}

proptest! {
    #[test]
    fn every_packet_that_was_made_is_found(made in any_made()) {
        let bytes = made.bytes();
        let ip = Headers::find(&bytes).unwrap().ip.unwrap();
        prop_assert_eq!((ip.at, ip.end), (made.ip(), made.end()));
        prop_assert_eq!(&bytes[ip.end..], &made.padding);
        let transport = ip.transport.unwrap();
        prop_assert_eq!((transport.at, transport.payload), (made.transport(), made.data()));
        prop_assert_eq!(transport.protocol == Protocol::Tcp, made.tcp);
    }

    /// As much of a packet as has its headers is enough, and less is not.
    #[test]
    fn headers_are_found_in_the_beginning_of_a_packet(made in any_made(), more in 0_usize..40) {
        let bytes = made.bytes();
        let start = &bytes[..(made.data() + more).min(bytes.len())];
        prop_assert_eq!(Headers::find_in(start, bytes.len()), Headers::find(&bytes));
        let cut = &bytes[..made.data() - 1];
        prop_assert!(Headers::find_in(cut, bytes.len()).is_err());
    }

    /// Whatever is changed in a packet, and wherever it is cut, what is found lies inside.
    #[test]
    fn nothing_is_found_outside(
        made in any_made(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = made.bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(Headers { ip: Some(ip), .. }) = Headers::find(&bytes) {
            prop_assert!(ip.at < ip.end && ip.end <= bytes.len());
            prop_assert!(ip.addresses.range().end <= ip.end);
            if let Some(transport) = ip.transport {
                let least = if transport.protocol == Protocol::Tcp { 20 } else { 8 };
                prop_assert!(transport.at >= ip.addresses.range().end);
                prop_assert!(transport.payload >= transport.at + least);
                prop_assert!(transport.payload <= ip.end);
            }
        }
    }
}
