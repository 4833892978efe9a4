use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::made::{Made, any_made};
use super::*;

fn all(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
    let cut = Cut::new(packet, size).unwrap();
    let segment = |n| {
        let mut room = vec![0; cut.len(n).unwrap()];
        cut.write(n, &mut room).unwrap();
        room
    };
    let segments = (0..cut.segments()).map(segment).collect();
    assert_eq!((cut.len(cut.segments()), cut.write(cut.segments(), &mut [])), (None, None));
    segments
}

#[test]
fn tcps_numbers_go_on_and_its_flags_stay_at_their_ends() {
    let mut made = Made::plain(false, true);
    made.payload = (0..10).collect();
    let mut packet = made.bytes();
    let flags = made.transport() + 13;
    packet[flags] = CWR | FIN | PSH | 0x10;
    packet[made.transport() + 4..][..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let segments = all(&packet, 4);
    let seen: Vec<_> = segments
        .iter()
        .map(|segment| (segment[made.transport() + 7], segment[flags], segment[19]))
        .collect();
    // Sequence number, flags, the low byte of the identification.
    assert_eq!(seen, [(0xFF, CWR | 0x10, 1), (3, 0x10, 2), (7, FIN | PSH | 0x10, 3)]);
}

#[test]
fn ip_is_made_to_say_what_is_there() {
    for (v6, at, header) in [(false, 16, 0), (true, 18, 40)] {
        for tags in [vec![], vec![0x8100], vec![0x88A8, 0x8100]] {
            let made = Made { tags, ..Made::plain(v6, true) };
            let (mut packet, at) = (made.bytes(), at + made.ip() - 14);
            let len = u16::try_from(packet.len() - made.ip() - header).unwrap();
            for claim in [0, 20, len - 1, len, len + 1, u16::MAX] {
                packet[at..at + 2].copy_from_slice(&claim.to_be_bytes());
                let size = packet.len();
                say_length(&mut packet, size);
                assert_eq!(packet[at..at + 2], len.to_be_bytes(), "claimed {claim}");
            }
            if !v6 {
                let header = &packet[made.ip()..made.transport()];
                assert!(super::super::Sum::of(header).is_right(), "its checksum is as new");
            }
        }
    }
    let mut long = Made::plain(false, true).bytes();
    long.resize(70_000, 1);
    let before = long.clone();
    say_length(&mut long, 70_000);
    assert_eq!(long, before, "too long to be said");
}

proptest! {
    #[test]
    fn segments_together_are_the_packet(made in any_made(), size in 1_u16..400) {
        let packet = made.bytes();
        let segments = all(&packet, size);
        let mut payload: Vec<u8> = Vec::new();
        for segment in &segments {
            let headers = Headers::find(segment).unwrap();
            let ip = headers.ip.as_ref().unwrap();
            prop_assert_eq!(ip.end, segment.len());
            let piece = &segment[headers.transport().unwrap().payload..];
            prop_assert!(piece.len() <= usize::from(size));
            payload.extend(piece);
            let mut whole = segment.clone();
            let checksum = Checksum::of(segment, &headers).unwrap();
            checksum.complete(&mut whole);
            prop_assert!(checksum.is_right(&whole));
        }
        prop_assert_eq!(&payload, &made.payload);
        prop_assert_eq!(segments.len(), made.payload.len().div_ceil(usize::from(size)).max(1));
    }

    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), size: u16) {
        if let Some(room) = bytes.get_mut(12..15) {
            room.copy_from_slice(&[8, 0, 0x45]);
        }
        let len = bytes.len();
        say_length(&mut bytes, len);
        if let Ok(cut) = Cut::new(&bytes, size) {
            for n in 0..=cut.segments() {
                let mut room = vec![0; cut.len(n).unwrap_or(0)];
                let _ = cut.write(n, &mut room);
            }
        }
    }
}
