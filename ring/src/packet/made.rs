//! Packets for the tests, made byte by byte from what the specifications say.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

/// What a test wants a packet to be.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) tags: Vec<u16>,
    pub(super) v6: bool,
    /// IPv4 options, or IPv6 extensions as number and bytes behind the first.
    pub(super) options: Vec<u8>,
    pub(super) extensions: Vec<(u8, Vec<u8>)>,
    pub(super) tcp: bool,
    pub(super) tcp_options: usize,
    pub(super) payload: Vec<u8>,
    pub(super) padding: Vec<u8>,
}

pub(super) const V4: [u8; 8] = [66, 9, 149, 187, 161, 142, 100, 80];
pub(super) const PORTS: [u8; 4] = [0x0A, 0xEA, 0x06, 0xE6];

impl Made {
    /// Without anything optional.
    pub(super) fn plain(v6: bool, tcp: bool) -> Self {
        Self {
            tags: vec![],
            v6,
            options: vec![],
            extensions: vec![],
            tcp,
            tcp_options: 0,
            payload: vec![1, 2, 3, 4, 5],
            padding: vec![],
        }
    }

    /// Where the IP header begins.
    pub(super) fn ip(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the transport header begins.
    pub(super) fn transport(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        self.ip() + if self.v6 { 40 + extensions } else { 20 + self.options.len() }
    }

    /// Where the payload begins.
    pub(super) fn data(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.tcp_options } else { 8 }
    }

    /// Where the packet ends and padding begins.
    pub(super) fn end(&self) -> usize {
        self.data() + self.payload.len()
    }

    /// The bytes, checksums of the transport zero.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in &self.tags {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0x00, 0x07]);
        }
        bytes.extend(if self.v6 { [0x86, 0xDD] } else { [0x08, 0x00] });
        let number = if self.tcp { 6 } else { 17 };
        let len = self.end() - self.ip();
        if self.v6 {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(u16::try_from(len - 40).unwrap().to_be_bytes());
            bytes.push(self.extensions.first().map_or(number, |(first, _)| *first));
            bytes.push(64);
            bytes.extend((0..32).map(|n| n * 7 + 1));
            let next = self.extensions.iter().skip(1).map(|(next, _)| *next).chain([number]);
            for ((_, extension), next) in self.extensions.iter().zip(next) {
                bytes.push(next);
                bytes.extend(&extension[1..]);
            }
        } else {
            bytes.push(0x45 + u8::try_from(self.options.len() / 4).unwrap());
            bytes.push(0);
            bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
            bytes.extend([0, 1, 0x40, 0, 64, number, 0, 0]);
            bytes.extend(V4);
            bytes.extend(&self.options);
        }
        bytes.extend(PORTS);
        if self.tcp {
            bytes.extend([0; 8]);
            bytes.push(u8::try_from(5 + self.tcp_options / 4).unwrap() << 4);
            bytes.extend([0x18, 1, 0, 0, 0, 0, 0]);
            bytes.resize(bytes.len() + self.tcp_options, 1);
        } else {
            bytes.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        bytes.extend(&self.padding);
        bytes
    }
}

/// An extension that a packet's header may be looked for behind.
fn extension() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let unit = |number: u8| {
        (0_u8..3).prop_map(move |units| {
            let mut bytes = vec![0; 8 + 8 * usize::from(units)];
            bytes[1] = units;
            (number, bytes)
        })
    };
    prop_oneof![
        unit(0),
        unit(60),
        // A routing header at its end, an atomic fragment, and an authentication header.
        unit(43),
        Just((44, vec![0; 8])),
        Just((51, {
            let mut bytes = vec![0; 16];
            bytes[1] = 2;
            bytes
        })),
    ]
}

/// Any packet whose transport header can be found.
pub(super) fn any_made() -> impl Strategy<Value = Made> {
    (
        prop::collection::vec(prop_oneof![Just(0x8100_u16), Just(0x88A8)], 0..=2),
        any::<(bool, bool)>(),
        (0_usize..=10, 0_usize..=10),
        prop::collection::vec(extension(), 0..=8),
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(any::<u8>(), 0..60),
    )
        .prop_map(|(tags, (v6, tcp), (options, tcp_options), extensions, payload, padding)| {
            Made {
                tags,
                v6,
                options: vec![1; 4 * options],
                extensions,
                tcp,
                tcp_options: 4 * tcp_options,
                payload,
                padding,
            }
        })
}
