//! Chains of network slots that a peer wrote: both ends follow them to an end or refuse them, the
//! pieces lie in their pages, every slot is answered; and what one end makes, the other finds again.
#![no_main]

use domkit_fuzz::bytes::Bytes;
use hypervisor::GrantRef;
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::collect::{self, Collect};
use ring::wire::netif::control::Algorithm;
use ring::wire::netif::extra::{Gso, Hash};
use ring::wire::netif::fit::{Fit, Placed, Takes};
use ring::wire::netif::gather::{Content, FATAL_AFTER, Gather, Piece};
use ring::wire::netif::rx::Request;
use ring::wire::netif::split::Split;
use ring::wire::netif::{MAX_RX_SIZE, Status, extra, rx, tx};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((what, rest)) = bytes.split_first() else { return };
    match what & 3 {
        0 => gather(rest),
        1 => collect(rest),
        2 => split(&mut Bytes::new(rest)),
        _ => fit(&mut Bytes::new(rest)),
    }
});

fn gather(bytes: &[u8]) {
    let (mut gather, mut fed, mut ended) = (Gather::new(), 0, 0);
    for slot in bytes.as_chunks().0 {
        fed += 1;
        let Ok(chain) = gather.feed(&tx::Slot(*slot)) else { return };
        assert_eq!(gather.end().is_ok(), chain.is_some());
        let Some(chain) = chain else {
            assert!(fed - ended <= FATAL_AFTER + 1 + extra::KINDS, "a chain without an end");
            continue;
        };
        ended += chain.slots();
        assert_eq!(ended, fed);
        assert_eq!(chain.answers(Status::OKAY).count(), chain.slots());
        if let Content::Packet(packet) = chain.content() {
            let mut size = 0;
            for piece in packet.pieces() {
                assert!(usize::from(piece.offset) + usize::from(piece.size) <= 4096);
                size += usize::from(piece.size);
            }
            assert_eq!(size, usize::from(packet.size));
        }
    }
}

fn collect(bytes: &[u8]) {
    let (mut collect, mut fed, mut ended) = (Collect::new(), 0, 0);
    for slot in bytes.as_chunks().0 {
        fed += 1;
        let Ok(arrival) = collect.feed(&rx::Slot(*slot)) else { return };
        assert_eq!(collect.end().is_ok(), arrival.is_some());
        let Some(arrival) = arrival else {
            assert!(fed - ended <= collect::MOST + extra::KINDS, "a chain without an end");
            continue;
        };
        ended += arrival.slots();
        assert_eq!(ended, fed);
        assert!(arrival.pages().all(|(slot, _)| slot < arrival.slots()));
        let mut sum = 0;
        for piece in arrival.pieces() {
            assert!(usize::from(piece.offset) + usize::from(piece.size) <= 4096);
            sum += usize::from(piece.size);
        }
        if let Ok((size, _)) = arrival.packet() {
            assert!(size == sum && size <= MAX_RX_SIZE);
        }
    }
}

fn half(script: &mut Bytes) -> u16 {
    u16::from_le_bytes([script.byte(), script.byte()])
}

fn offload(script: &mut Bytes) -> Offload {
    let what = script.byte();
    let checksum = match what & 3 {
        0 => Checksum::Unchecked,
        1 => Checksum::Validated,
        _ => Checksum::Blank,
    };
    let gso = (what & 4 != 0).then(|| Gso {
        size: half(script).max(1),
        protocol: 1 + (what >> 3 & 1),
        features: 0,
    });
    let hash = (what & 16 != 0).then(|| Hash {
        of: what >> 5,
        algorithm: Algorithm::TOEPLITZ,
        value: script.word(),
    });
    Offload { checksum, gso, hash }
}

fn split(script: &mut Bytes) {
    let offload = offload(script);
    let mut pieces = Vec::new();
    while !script.is_over() {
        let (offset, size) = (half(script), half(script));
        pieces.push(Piece { gref: GrantRef(script.word()), offset, size: size % 4097 });
    }
    let ids: Vec<u16> = (0..pieces.len()).map(|n| n as u16).collect();
    let Ok(split) = Split::new(&pieces, &ids, offload) else { return };
    let slots: Vec<_> = split.slots().collect();
    assert_eq!(slots.len(), split.slots_needed());
    let mut gather = Gather::new();
    let mut chains = slots.iter().map(|slot| gather.feed(slot).expect("we made it")).flatten();
    let chain = chains.next().expect("it ends");
    assert_eq!((chains.next(), chain.slots()), (None, slots.len()));
    let Content::Packet(packet) = chain.content() else { panic!("{:?}", chain.content()) };
    assert_eq!(packet.offload, offload);
    pieces.retain(|piece| piece.size > 0);
    assert_eq!(packet.pieces().collect::<Vec<_>>(), pieces);
}

fn fit(script: &mut Bytes) {
    let offload = offload(script);
    let what = script.byte();
    let mut takes = Takes::default();
    (takes.sg, takes.gso_tcpv4, takes.gso_tcpv6, takes.hash) =
        (what & 1 != 0, what & 2 != 0, what & 4 != 0, what & 8 != 0);
    takes.headroom = half(script);
    let size = script.word() as usize % (2 * MAX_RX_SIZE);
    let Ok(fit) = Fit::new(size, offload, &takes) else { return };
    let (mut collect, mut from) = (Collect::new(), 0);
    for n in 0..fit.slots() {
        let slot = match fit.place(n, Request { id: n as u16, gref: GrantRef(n as u32) }) {
            Placed::Extra(slot) => slot,
            Placed::Data { copy, response } => {
                assert_eq!((copy.from, copy.gref.0 as usize), (from, n));
                assert!(copy.size > 0 && usize::from(copy.offset + copy.size) <= 4096);
                from += usize::from(copy.size);
                response.into()
            }
        };
        let arrival = collect.feed(&slot).expect("we made it");
        assert_eq!(arrival.is_some(), n + 1 == fit.slots());
        if let Some(arrival) = arrival {
            let hash = offload.hash.filter(|_| takes.hash);
            assert_eq!(arrival.packet(), Ok((size, Offload { hash, ..offload })));
            assert!(arrival.pieces().all(|piece| piece.offset == takes.headroom));
        }
    }
    assert_eq!(from, size, "a part of the packet is missing");
}
