use alloc::vec;

use super::*;
use crate::packet::made::Made;

/// The key of the verification suite, as in the tests of the hash itself.
const SUITE: [u8; 40] = [
    0x6D, 0x5A, 0x56, 0xDA, 0x25, 0x5B, 0x0E, 0xC2, 0x41, 0x67, 0x25, 0x3D, 0x43, 0xA3, 0x8F, 0xB0,
    0xD0, 0xCA, 0x2B, 0xCB, 0xAE, 0x7B, 0x30, 0xB4, 0x77, 0xCB, 0x2D, 0xA3, 0x80, 0x30, 0xF2, 0x0C,
    0x6A, 0x42, 0xB7, 0x3B, 0xBE, 0xAC, 0x01, 0xFA,
];

fn hash(made: &Made, types: HashTypes) -> Option<Hash> {
    let bytes = made.bytes();
    let headers = Headers::find(&bytes).unwrap();
    Flow::of(&bytes, &headers).unwrap().hash(types, &Key::new(&SUITE).unwrap())
}

fn toeplitz(of: u8, value: u32) -> Option<Hash> {
    Some(Hash { of, algorithm: Algorithm::TOEPLITZ, value })
}

/// The packet has the suite's first addresses and ports.
#[test]
fn the_most_that_was_asked_for_is_hashed() {
    let (ip, tcp) = (toeplitz(0, 0x323E_8FC2), toeplitz(1, 0x51CC_C178));
    let mut made = Made::plain(false, true);
    made.tags = vec![0x8100];
    made.options = vec![1; 12];
    assert_eq!(hash(&made, HashTypes::ALL), tcp);
    assert_eq!(hash(&made, HashTypes::IPV4_TCP), tcp);
    assert_eq!(hash(&made, HashTypes::IPV4), ip);
    assert_eq!(hash(&made, HashTypes::IPV6.with(HashTypes::IPV6_TCP)), None);
    // The ports of UDP do not count.
    let udp = Made::plain(false, false);
    assert_eq!(hash(&udp, HashTypes::ALL), ip);
    assert_eq!(hash(&udp, HashTypes::IPV4_TCP), None);
}

#[test]
fn ipv6_has_types_of_its_own() {
    let made = Made::plain(true, true);
    let [plain, tcp] = [HashTypes::IPV6, HashTypes::ALL].map(|types| hash(&made, types).unwrap());
    assert_eq!((plain.of, tcp.of), (2, 3));
    assert_ne!(plain.value, tcp.value);
    let bytes = made.bytes();
    let key = Key::new(&SUITE).unwrap();
    assert_eq!(plain.value, key.hash(&bytes[22..54]));
    assert_eq!(tcp.value, key.hash(&bytes[22..58]));
    assert_eq!(hash(&made, HashTypes::IPV4), None);
}

#[test]
fn what_is_not_ip_has_no_flow() {
    let headers = Headers { tags: 0, ether_type: 0x0806, ip: None };
    assert_eq!(Flow::of(&[0; 60], &headers), None);
}
