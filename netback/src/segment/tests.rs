use proptest::prelude::*;

use super::*;

/// UDP over IPv4 with so much payload, and then padding.
fn udp(payload: u8, padding: usize) -> Buffer {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    bytes.extend([0x45, 0, 0, 28 + payload, 0xFF, 0xFF, 0x40, 0, 64, 17, 0, 0]);
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8 + payload, 0, 0]);
    bytes.extend(0..payload);
    bytes.resize(bytes.len() + padding, 0xEE);
    let mut buffer = Buffer::new().unwrap();
    buffer.fill(&Header::default(), &bytes);
    buffer
}

fn segments(whole: &Buffer, size: u16, most: usize) -> (Vec<Buffer>, Result<(), Loss>) {
    let mut segments = Vec::new();
    let mut pool = Pool::new(most + 1);
    let cut = cut(whole, size, (&mut pool, 1), |segment| segments.push(segment));
    (segments, cut)
}

#[test]
fn udp_becomes_datagrams_with_lengths_of_their_own() {
    let (segments, cut) = segments(&udp(100, 20), 30, 9);
    assert_eq!(cut, Ok(()));
    let lens: Vec<_> = segments.iter().map(|segment| segment.len() - 42).collect();
    assert_eq!(lens, [30, 30, 30, 10]);
    for (n, segment) in (0_u16..).zip(&segments) {
        let packet = segment.packet();
        let len = u16::try_from(packet.len()).unwrap();
        assert_eq!(packet[16..18], (len - 14).to_be_bytes());
        assert_eq!(packet[18..20], 0xFFFF_u16.wrapping_add(n).to_be_bytes(), "its identification");
        assert_eq!(packet[38..40], (len - 34).to_be_bytes());
        assert_eq!(usize::from(packet[42]), usize::from(n) * 30);
        let header = segment.header();
        assert_eq!((header.flags, header.csum_start, header.csum_offset), (1, 34, 6));
    }
}

#[test]
fn what_is_small_enough_or_has_nothing_is_one_segment() {
    for payload in [0, 1, 30] {
        let (segments, cut) = segments(&udp(payload, 3), 30, 9);
        assert_eq!((segments.len(), cut), (1, Ok(())));
        assert_eq!(segments[0].len(), 42 + usize::from(payload));
    }
}

#[test]
fn what_cannot_be_cut_says_why() {
    let (made, cut) = segments(&udp(100, 0), 30, 2);
    assert_eq!((made.len(), cut), (2, Err(Loss::NoMemory)));
    let mut arp = udp(100, 0);
    arp.packet_mut()[13] = 6;
    assert_eq!(segments(&arp, 30, 2).1, Err(Loss::NoTransport));
    let mut short = udp(100, 0);
    short.set_len(60);
    assert_eq!(segments(&short, 30, 2).1, Err(Loss::Headers));
}

proptest! {
    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 14..200), size: u16) {
        if let Some(room) = bytes.get_mut(12..15) {
            room.copy_from_slice(&[8, 0, 0x45]);
        }
        let mut buffer = Buffer::new().unwrap();
        buffer.fill(&Header::default(), &bytes);
        let _ = segments(&buffer, size, 3);
    }
}
