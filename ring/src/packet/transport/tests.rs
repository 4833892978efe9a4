use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::packet::made::{Made, V4, any_made};

/// The checksum from the definition: the pseudo-header as the RFC draws it, then the segment.
fn naive(made: &Made) -> u16 {
    let bytes = made.bytes();
    let segment = &bytes[made.transport()..made.end()];
    let number = if made.tcp { 6 } else { 17 };
    let mut all: Vec<u8> = if made.v6 {
        let at = made.ip();
        let mut pseudo = bytes[at + 8..at + 40].to_vec();
        pseudo.extend(u32::try_from(segment.len()).unwrap().to_be_bytes());
        pseudo.extend([0, 0, 0, number]);
        pseudo
    } else {
        let mut pseudo = V4.to_vec();
        pseudo.extend([0, number]);
        pseudo.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
        pseudo
    };
    all.extend(segment);
    let mut sum = 0_u64;
    for pair in all.chunks(2) {
        sum += u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    match !(sum as u16) {
        0 if !made.tcp => 0xFFFF,
        other => other,
    }
}

fn field(made: &Made, bytes: &[u8]) -> u16 {
    let at = made.transport() + if made.tcp { 16 } else { 6 };
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// What a device does with a blank checksum, by virtio 1.2, 5.1.6.2: it adds up from `csum_start`
/// to the end and puts the complement at `csum_offset` from there.
fn as_a_device(checksum: &Checksum, bytes: &mut [u8]) {
    let sum = Sum::of(&bytes[checksum.start..]).checksum();
    let at = checksum.start + checksum.offset;
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_sum_of_zero_in_udp_is_all_ones() {
    let mut made = Made::plain(false, false);
    made.payload = vec![0, 0];
    // The payload that brings the sum to all ones, and so the checksum to zero.
    let need = naive(&made);
    made.payload = need.to_be_bytes().to_vec();
    let mut bytes = made.bytes();
    let checksum = Checksum::find(&bytes).unwrap();
    checksum.complete(&mut bytes);
    assert_eq!(field(&made, &bytes), 0xFFFF);
    assert!(checksum.is_right(&bytes));
}

#[test]
fn udp_over_ipv4_may_do_without() {
    let v4 = Made::plain(false, false).bytes();
    assert!(Checksum::find(&v4).unwrap().is_right(&v4));
    let v6 = Made::plain(true, false).bytes();
    assert!(!Checksum::find(&v6).unwrap().is_right(&v6));
    let tcp = Made::plain(false, true).bytes();
    assert!(!Checksum::find(&tcp).unwrap().is_right(&tcp));
}

#[test]
fn what_has_no_checksum_says_why() {
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let none = NoChecksum::NoTransport { ether_type: 0x0806 };
    assert_eq!((Checksum::find(&arp), none.name()), (Err(none), "no_transport"));
    let mut fragment = Made::plain(false, true).bytes();
    fragment[20] = 0x20;
    let none = NoChecksum::NoTransport { ether_type: 0x0800 };
    assert_eq!(Checksum::find(&fragment), Err(none));
    // A UDP length that is less than its header, or more than there is.
    for len in [7, 14] {
        let mut udp = Made::plain(false, false).bytes();
        udp[39] = len;
        let malformed = Malformed::Transport { number: 17, at: 34 };
        assert_eq!(Checksum::find(&udp), Err(malformed.into()));
    }
}

#[test]
fn an_ipv4_header_gets_its_checksum() {
    let mut made = Made::plain(false, true);
    made.options = vec![1; 8];
    let mut bytes = made.bytes();
    bytes[24..26].copy_from_slice(&[0xAA, 0x55]);
    let headers = Headers::find(&bytes).unwrap();
    complete_ipv4(&mut bytes, &headers);
    assert!(Sum::of(&bytes[14..42]).is_right());

    let v6 = Made::plain(true, true).bytes();
    let mut same = v6.clone();
    complete_ipv4(&mut same, &Headers::find(&v6).unwrap());
    assert_eq!(same, v6);
}

proptest! {
    /// Whatever a peer left in the field.
    #[test]
    fn a_completed_checksum_is_the_naive_one(made in any_made(), left: [u8; 2]) {
        let mut bytes = made.bytes();
        let checksum = Checksum::find(&bytes).unwrap();
        let at = checksum.start + checksum.offset;
        bytes[at..at + 2].copy_from_slice(&left);
        checksum.complete(&mut bytes);
        prop_assert_eq!(field(&made, &bytes), naive(&made));
        prop_assert!(checksum.is_right(&bytes));
        // Nothing else changed.
        bytes[at..at + 2].fill(0);
        prop_assert_eq!(bytes, made.bytes());
    }

    /// Blank and completed by a device is the same as completed here.
    #[test]
    fn a_device_completes_what_was_left_blank(mut made in any_made()) {
        made.padding.clear();
        let mut bytes = made.bytes();
        let checksum = Checksum::find(&bytes).unwrap();
        checksum.leave_blank(&mut bytes);
        as_a_device(&checksum, &mut bytes);
        // A device does not know of UDP's zero.
        let zero = field(&made, &bytes) == 0 && naive(&made) == 0xFFFF;
        prop_assert!(zero || field(&made, &bytes) == naive(&made));
    }

    /// One bit is enough.
    #[test]
    fn a_changed_packet_is_not_right(made in any_made(), at in any::<prop::sample::Index>(), bit in 0..8) {
        prop_assume!(!made.payload.is_empty());
        let mut bytes = made.bytes();
        let checksum = Checksum::find(&bytes).unwrap();
        checksum.complete(&mut bytes);
        bytes[made.data() + at.index(made.payload.len())] ^= 1_u8 << bit;
        prop_assert!(!checksum.is_right(&bytes));
    }
}
