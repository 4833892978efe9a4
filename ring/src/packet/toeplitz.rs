//! The Toeplitz hash: each bit of the input that is one adds the 32 bits of the key that begin at
//! its position.
//!
//! Source: `XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ` in io/netif.h (RELEASE-4.17); the numbers in the
//! tests are the verification suite of Microsoft's RSS specification ("Verifying the RSS Hash
//! Calculation", Windows driver documentation).

/// The most bytes that a key has: enough for IPv6 addresses and ports.
pub const KEY: usize = 40;

/// A key, whose unspecified bytes are zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key([u8; KEY]);

impl Key {
    /// No key: every hash is zero.
    pub const EMPTY: Self = Self([0; KEY]);

    /// The key that begins with `bytes`, or `None` where they are too many.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut key = Self::EMPTY;
        key.0.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(key)
    }

    /// All of its bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; KEY] {
        &self.0
    }

    /// The hash of `input`. Beyond the key's end its bits are zero.
    #[inline]
    #[must_use]
    pub fn hash(&self, input: &[u8]) -> u32 {
        let (first, rest) = self.0.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        let mut following = rest.iter();
        let mut window = u64::from(u32::from_be_bytes(*first)) << 8;
        let mut hash = 0_u32;
        for byte in input {
            // Forty bits: the 32 that the byte's first bit adds, and the next eight.
            window |= u64::from(following.next().copied().unwrap_or(0));
            for bit in (0..8).rev() {
                let ones = 0_u32.wrapping_sub(u32::from(byte >> bit) & 1);
                hash ^= (window >> 1 >> bit) as u32 & ones;
            }
            window <<= 8;
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// The suite's key.
    const SUITE: [u8; 40] = [
        0x6D, 0x5A, 0x56, 0xDA, 0x25, 0x5B, 0x0E, 0xC2, 0x41, 0x67, 0x25, 0x3D, 0x43, 0xA3, 0x8F,
        0xB0, 0xD0, 0xCA, 0x2B, 0xCB, 0xAE, 0x7B, 0x30, 0xB4, 0x77, 0xCB, 0x2D, 0xA3, 0x80, 0x30,
        0xF2, 0x0C, 0x6A, 0x42, 0xB7, 0x3B, 0xBE, 0xAC, 0x01, 0xFA,
    ];

    fn input(source: &[u8], destination: &[u8], ports: Option<(u16, u16)>) -> Vec<u8> {
        let mut input = [source, destination].concat();
        if let Some((from, to)) = ports {
            input.extend(from.to_be_bytes());
            input.extend(to.to_be_bytes());
        }
        input
    }

    #[test]
    fn the_suite_for_ipv4() {
        let key = Key::new(&SUITE).unwrap();
        for (destination, to, source, from, addresses, with_ports) in [
            ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323e_8fc2, 0x51cc_c178),
            ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xd718_262a, 0xc626_b0ea),
            ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xd2d0_a5de, 0x5c2b_394a),
            ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x8298_9176, 0xafc7_327f),
            ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5d18_09c5, 0x10e8_28a2),
        ] {
            let [source, destination] =
                [source, destination].map(|ip| ip.parse::<Ipv4Addr>().unwrap().octets());
            assert_eq!(key.hash(&input(&source, &destination, None)), addresses);
            assert_eq!(key.hash(&input(&source, &destination, Some((from, to)))), with_ports);
        }
    }

    #[test]
    fn the_suite_for_ipv6() {
        let key = Key::new(&SUITE).unwrap();
        for (destination, to, source, from, addresses, with_ports) in [
            ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2cc1_8cd5, 0x4020_7d3d),
            ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0f0c_461c, 0xdde5_1bbf),
            (
                "fe80::200:f8ff:fe21:67cf",
                38024,
                "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                44251,
                0x4b61_e985,
                0x02d1_feef,
            ),
        ] {
            let [source, destination] =
                [source, destination].map(|ip| ip.parse::<Ipv6Addr>().unwrap().octets());
            assert_eq!(key.hash(&input(&source, &destination, None)), addresses);
            assert_eq!(key.hash(&input(&source, &destination, Some((from, to)))), with_ports);
        }
    }

    #[test]
    fn keys_are_filled_up_with_zero_and_have_an_end() {
        assert_eq!(Key::new(&[]), Some(Key::EMPTY));
        assert_eq!(Key::EMPTY.hash(&[0xFF; 36]), 0);
        assert_eq!(Key::new(&[1; 41]), None);
        let short = Key::new(&SUITE[..8]).unwrap();
        assert_eq!(short.hash(&[0x80, 0, 0, 0, 0, 0, 0, 0]), 0x6D5A_56DA);
        assert_eq!(short.hash(&[0, 0, 0, 0, 0, 0, 0, 1]), 0);
        // From the lowest bit of 0x0E on: that and 0xC2.
        assert_eq!(short.hash(&[0, 0, 0, 0, 0, 0, 0x01, 0]), 0x6100_0000);
    }

    /// The definition of the header, bit by bit.
    fn naive(key: &[u8], input: &[u8]) -> u32 {
        let bit = |bytes: &[u8], n: usize| {
            bytes.get(n / 8).is_some_and(|byte| byte >> (7 - n % 8) & 1 == 1)
        };
        let mut hash = 0;
        for n in (0..input.len() * 8).filter(|n| bit(input, *n)) {
            let word = (n..n + 32).fold(0_u32, |word, k| word << 1 | u32::from(bit(key, k)));
            hash ^= word;
        }
        hash
    }

    proptest! {
        #[test]
        fn any_input_has_the_naive_hash(
            key in prop::collection::vec(any::<u8>(), 0..=40),
            input in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            prop_assert_eq!(Key::new(&key).unwrap().hash(&input), naive(&key, &input));
        }
    }
}
