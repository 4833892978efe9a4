use alloc::vec;
use alloc::vec::Vec;

use hypervisor::GrantRef;
use proptest::prelude::*;

use super::*;
use crate::wire::netif::control::Algorithm;
use crate::wire::netif::extra::{Extra, Gso, Hash, Kind};
use crate::wire::netif::fit::{Fit, Placed, Takes, Unfit};
use crate::wire::netif::rx::Request;

fn response(id: u16, offset: u16, status: i16, flags: Flags) -> Slot {
    Response { id, offset, flags, status }.into()
}

fn collect(slots: &[Slot]) -> Result<Arrival, Fault> {
    let mut collect = Collect::new();
    let (last, before) = slots.split_last().unwrap();
    for (n, slot) in before.iter().enumerate() {
        assert_eq!(collect.feed(slot)?, None, "ended after {n}");
        assert_eq!(collect.end(), Err(Fault::Cut { slots: n + 1 }));
    }
    let arrival = collect.feed(last)?.expect("goes on");
    assert_eq!((collect.end(), arrival.slots()), (Ok(()), slots.len()));
    Ok(arrival)
}

const ALL: Takes = Takes { sg: true, gso_tcpv4: true, gso_tcpv6: true, hash: true, headroom: 0 };

#[test]
fn pieces_are_found_by_position() {
    let arrival = collect(&[
        response(7, 64, 100, Flags::MORE_DATA.with(Flags::EXTRA_INFO).with(Flags::CSUM_BLANK)),
        Extra { more: false, kind: Kind::Gso(Gso { size: 9, protocol: 2, features: 0 }) }.into(),
        response(9, 0, 50, Flags::NONE),
    ])
    .unwrap();
    let (size, offload) = arrival.packet().unwrap();
    assert_eq!((size, offload.checksum, offload.gso.unwrap().size), (150, Checksum::Blank, 9));
    let piece = |slot, id, offset, size| Piece { slot, id, offset, size };
    let pieces: Vec<_> = arrival.pieces().collect();
    assert_eq!(pieces, [piece(0, 7, 64, 100), piece(2, 9, 0, 50)]);
    assert_eq!(arrival.pages().collect::<Vec<_>>(), [(0, 7), (2, 9)]);
}

#[test]
fn one_page_that_failed_loses_the_packet() {
    let slots = [response(1, 0, 100, Flags::MORE_DATA), response(2, 0, -1, Flags::NONE)];
    let arrival = collect(&slots).unwrap();
    assert_eq!(arrival.packet(), Err(Dropped::Failed { status: -1 }));
    assert_eq!(arrival.pages().count(), 2);
    let short = collect(&[response(1, 0, 13, Flags::NONE)]).unwrap();
    assert_eq!(short.packet(), Err(Dropped::TooShort { size: 13 }));
    let long = vec![response(1, 0, 4096, Flags::MORE_DATA); 18];
    let long = collect(&[long, vec![response(1, 0, 1, Flags::NONE)]].concat()).unwrap();
    assert_eq!(long.packet(), Err(Dropped::Oversized { size: 73_729 }));
}

#[test]
fn a_backend_is_not_believed_beyond_the_page() {
    for (offset, status) in [(4096, 1), (1, 4096), (0xFFFF, 0x7FFF)] {
        let size = u16::try_from(status).unwrap();
        let fault = Fault::CrossesPage { offset, size };
        assert_eq!(collect(&[response(1, offset, status, Flags::NONE)]), Err(fault));
    }
    let endless = vec![response(1, 0, 1, Flags::MORE_DATA); 20];
    assert_eq!(collect(&endless), Err(Fault::SlotCount { most: 19 }));
    let first = response(1, 0, 100, Flags::EXTRA_INFO);
    let wrong = Extra { more: false, kind: Kind::Unknown(0) };
    assert_eq!(collect(&[first, wrong.into()]), Err(Fault::ExtraType { number: 0 }));
    let multicast = Extra { more: false, kind: Kind::McastAdd([1; 6]) };
    let arrival = collect(&[first, multicast.into()]).unwrap();
    assert_eq!(arrival.packet(), Err(Dropped::MulticastData { slots: 1 }));
}

/// Linux's backend says the headroom in the extra only, and counts it into the size.
#[test]
fn headroom_is_found_as_linux_says_it() {
    let first = |status| response(1, 0, status, Flags::EXTRA_INFO);
    let headroom = |headroom| Slot::from(Extra { more: false, kind: Kind::Xdp { headroom } });
    let piece = |status, room| {
        let arrival = collect(&[first(status), headroom(room)]).unwrap();
        let pieces: Vec<_> = arrival.pieces().map(|piece| (piece.offset, piece.size)).collect();
        let size: usize = pieces.iter().map(|(_, size)| usize::from(*size)).sum();
        assert_eq!(arrival.packet().map_or(0, |(size, _)| size), size);
        pieces
    };
    assert_eq!(piece(1000, 256), [(256, 1000)]);
    assert_eq!(piece(4096, 256), [(256, 3840)]);
    assert_eq!(piece(100, 0), [(0, 100)]);
    assert_eq!(piece(100, 4096), []);
    assert_eq!(piece(100, 0xFFFF), []);
}

#[test]
fn what_a_frontend_does_not_take_does_not_fit() {
    let fit =
        |size, takes: &Takes| Fit::new(size, Offload::default(), takes).map(|fit| fit.slots());
    let plain = Takes::default();
    assert_eq!((fit(14, &plain), fit(4096, &plain)), (Ok(1), Ok(1)));
    assert_eq!(fit(13, &plain), Err(Unfit::TooShort { size: 13 }));
    assert_eq!(fit(4097, &plain), Err(Unfit::TooLarge { size: 4097, slots: 2, most: 1 }));
    assert_eq!((fit(4097, &ALL), fit(65_535, &ALL), fit(65_557, &ALL)), (Ok(2), Ok(16), Ok(17)));
    assert_eq!(fit(65_558, &ALL), Err(Unfit::TooLarge { size: 65_558, slots: 17, most: 17 }));
    let headroom = |headroom| Takes { headroom, ..ALL };
    // A page less for the data, and a slot for the extra.
    assert_eq!((fit(3840, &headroom(256)), fit(3841, &headroom(256))), (Ok(2), Ok(3)));
    // Linux's frontend has room for 17.
    assert_eq!(fit(17 * 3840, &headroom(256)), Ok(18));
    let large = Unfit::TooLarge { size: 65_281, slots: 18, most: 17 };
    assert_eq!(fit(65_281, &headroom(256)), Err(large));
    for (size, takes) in [(65_280, headroom(256)), (65_281, headroom(256)), (65_558, ALL)] {
        assert_eq!(Fit::has_room(size, &takes), fit(size, &takes).is_ok(), "{size}");
    }
    assert_eq!(fit(100, &headroom(4096)), Err(Unfit::Headroom { headroom: 4096 }));
    assert!(matches!(fit(100, &headroom(4095)), Err(Unfit::TooLarge { slots: 100, .. })));

    let gso = |protocol| Offload {
        gso: Some(Gso { size: 1448, protocol, features: 0 }),
        ..Offload::default()
    };
    for (protocol, takes) in
        [(1, Takes { gso_tcpv4: false, ..ALL }), (2, Takes { gso_tcpv6: false, ..ALL }), (3, ALL)]
    {
        assert_eq!(Fit::new(9000, gso(protocol), &takes), Err(Unfit::Segment { protocol }));
    }
    assert_eq!(Fit::new(9000, gso(2), &ALL).unwrap().slots(), 4);
}

/// A backend and a frontend with a page for each slot; gives what arrived, byte for byte.
fn across(packet: &[u8], offload: Offload, takes: &Takes) -> (Vec<u8>, Offload) {
    let fit = Fit::new(packet.len(), offload, takes).unwrap();
    let mut pages = vec![[0xEE_u8; 4096]; fit.slots()];
    let mut slots = Vec::new();
    for (n, page) in pages.iter_mut().enumerate() {
        let id = u16::try_from(n).unwrap();
        match fit.place(n, Request { id, gref: GrantRef(u32::from(id) + 8) }) {
            Placed::Extra(slot) => slots.push(slot),
            Placed::Data { copy, response } => {
                assert_eq!(copy.gref.0, u32::from(id) + 8);
                let (at, size) = (usize::from(copy.offset), usize::from(copy.size));
                page[at..at + size].copy_from_slice(&packet[copy.from..copy.from + size]);
                slots.push(response.into());
            }
        }
    }
    let arrival = collect(&slots).unwrap();
    let (size, said) = arrival.packet().unwrap();
    let mut bytes = Vec::new();
    for piece in arrival.pieces() {
        assert_eq!(piece.slot, usize::from(piece.id));
        let at = usize::from(piece.offset);
        bytes.extend(&pages[piece.slot][at..at + usize::from(piece.size)]);
    }
    assert_eq!(bytes.len(), size);
    (bytes, said)
}

/// No more is said to follow where a page is just full.
#[test]
fn whole_pages_are_the_last_ones_as_well() {
    for (size, headroom, slots) in [(4096, 0, 1), (8192, 0, 2), (3840, 256, 2), (7680, 256, 3)] {
        let takes = Takes { headroom, ..ALL };
        let packet = vec![7; size];
        assert_eq!(Fit::new(size, Offload::default(), &takes).unwrap().slots(), slots);
        assert_eq!(across(&packet, Offload::default(), &takes), (packet, Offload::default()));
    }
}

proptest! {
    #[test]
    fn what_fits_is_collected(
        size in 14_usize..=65_535,
        checksum in prop_oneof![Just(Checksum::Unchecked), Just(Checksum::Validated), Just(Checksum::Blank)],
        gso in prop::option::of((1_u16.., 1_u8..=2)),
        hash in prop::option::of(any::<u32>()),
        headroom in prop_oneof![Just(0_u16), 1_u16..=240],
        takes_hash: bool,
    ) {
        let packet: Vec<u8> = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
        let offload = Offload {
            checksum,
            gso: gso.map(|(size, protocol)| Gso { size, protocol, features: 0 }),
            hash: hash.map(|value| Hash { of: 1, algorithm: Algorithm::TOEPLITZ, value }),
        };
        let (bytes, said) = across(&packet, offload, &Takes { headroom, hash: takes_hash, ..ALL });
        prop_assert!(bytes == packet, "other bytes arrived");
        prop_assert_eq!(said, Offload { hash: offload.hash.filter(|_| takes_hash), ..offload });
    }

    /// Whatever a backend writes: chains end, and pieces lie in their pages.
    #[test]
    fn any_slots_are_followed_to_an_end(
        slots in prop::collection::vec(
            (any::<[u8; 8]>(), 0_u8..16, 0_u16..5000, 0_u16..2000).prop_map(|(mut bytes, flags, offset, size)| {
                bytes[2..4].copy_from_slice(&(offset % 4096).to_le_bytes());
                bytes[4] = flags;
                bytes[6..8].copy_from_slice(&size.to_le_bytes());
                Slot(bytes)
            }),
            1..80,
        ),
    ) {
        let (mut collect, mut fed, mut done) = (Collect::new(), 0, 0);
        for slot in &slots {
            fed += 1;
            match collect.feed(slot) {
                Ok(None) => {}
                Ok(Some(arrival)) => {
                    done += arrival.slots();
                    prop_assert_eq!(done, fed);
                    for piece in arrival.pieces() {
                        prop_assert!(piece.slot < arrival.slots());
                        prop_assert!(usize::from(piece.offset) + usize::from(piece.size) <= 4096);
                    }
                    if let Ok((size, _)) = arrival.packet() {
                        let sum: usize = arrival.pieces().map(|piece| usize::from(piece.size)).sum();
                        prop_assert_eq!(size, sum);
                    }
                }
                Err(_) => break,
            }
            prop_assert!(fed - done <= 19 + 5);
        }
    }
}
