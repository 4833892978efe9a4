use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::wire::netif::chain::{Checksum, Offload};
use crate::wire::netif::control::Algorithm;
use crate::wire::netif::extra::{Extra, Gso, GsoProtocol, Hash, Kind};
use crate::wire::netif::split::{Split, Unsendable, multicast};

const GSO: Gso = Gso { size: 1448, protocol: GsoProtocol::TcpV4 as u8, features: 0 };
const HASH: Hash = Hash { of: 1, algorithm: Algorithm::TOEPLITZ, value: 7 };

fn request(id: u16, offset: u16, size: u16, flags: Flags) -> Slot {
    Request { gref: GrantRef(u32::from(id) + 100), offset, flags, id, size }.into()
}

fn extra(more: bool, kind: Kind) -> Slot {
    Extra { more, kind }.into()
}

/// A request and `after` more of `size` bytes each, in a packet of `total`.
fn chain(total: u16, after: u16, size: u16) -> Vec<Slot> {
    let more = |n| if n < after { Flags::MORE_DATA } else { Flags::NONE };
    let later = (1..=after).map(|n| request(n, 0, size, more(n)));
    core::iter::once(request(0, 0, total, more(0))).chain(later).collect()
}

/// Feeds all; only the last slot may end the chain.
fn gather(slots: &[Slot]) -> Result<Chain, Fault> {
    let mut gather = Gather::new();
    let (last, before) = slots.split_last().unwrap();
    for (n, slot) in before.iter().enumerate() {
        assert_eq!(gather.feed(slot)?, None, "ended after {n}");
        assert_eq!(gather.end(), Err(Fault::Cut { slots: n + 1 }));
    }
    let chain = gather.feed(last)?.expect("goes on");
    assert_eq!(gather.end(), Ok(()));
    assert_eq!(chain.slots(), slots.len());
    assert_eq!(chain.answers(Status::OKAY).count(), slots.len());
    Ok(chain)
}

fn packet(chain: &Chain) -> Packet<'_> {
    match chain.content() {
        Content::Packet(packet) => packet,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_piece_is_what_the_others_leave() {
    let slots = [
        request(1, 100, 1500, Flags::MORE_DATA.with(Flags::CSUM_BLANK)),
        request(2, 0, 400, Flags::MORE_DATA),
        request(3, 4000, 96, Flags::NONE),
    ];
    let chain = gather(&slots).unwrap();
    let packet = packet(&chain);
    assert_eq!((packet.size, packet.offload.checksum), (1500, Checksum::Blank));
    let pieces: Vec<_> = packet.pieces().map(|piece| (piece.offset, piece.size)).collect();
    assert_eq!(pieces, [(100, 1004), (0, 400), (4000, 96)]);
}

#[test]
fn extras_stand_behind_the_first_and_are_answered_null() {
    let slots = [
        request(1, 0, 3000, Flags::MORE_DATA.with(Flags::EXTRA_INFO)),
        extra(true, Kind::Gso(GSO)),
        extra(false, Kind::Hash(HASH)),
        // The mark means nothing here: what follows is data.
        request(2, 0, 1000, Flags::MORE_DATA.with(Flags::EXTRA_INFO)),
        request(3, 0, 500, Flags::NONE),
    ];
    let chain = gather(&slots).unwrap();
    let offload = packet(&chain).offload;
    assert_eq!((offload.gso, offload.hash), (Some(GSO), Some(HASH)));
    let answers: Vec<_> = chain.answers(Status::ERROR).collect();
    let error = |id| Response { id, status: Status::ERROR };
    let null = |slot: &Slot| Response {
        id: u16::from_le_bytes([slot.0[0], slot.0[1]]),
        status: Status::NULL,
    };
    assert_eq!(answers, [error(1), null(&slots[1]), null(&slots[2]), error(2), error(3)]);
}

#[test]
fn a_chain_can_be_followed_when_it_is_answered_in_part() {
    let slots = [
        request(1, 0, 3000, Flags::MORE_DATA.with(Flags::EXTRA_INFO)),
        extra(true, Kind::Gso(GSO)),
        extra(false, Kind::Hash(HASH)),
        request(2, 0, 1000, Flags::MORE_DATA),
        request(3, 0, 500, Flags::NONE),
    ];
    let answers: Vec<_> = gather(&slots).unwrap().answers(Status::OKAY).collect();
    for answered in 0..=slots.len() {
        let mut slots = slots;
        for (slot, answer) in slots.iter_mut().zip(&answers).take(answered) {
            slot.0[..Response::SIZE].copy_from_slice(&answer.encode());
        }
        let again: Vec<_> = gather(&slots).unwrap().answers(Status::OKAY).collect();
        assert_eq!(again, answers, "{answered} answered");
    }
}

#[test]
fn pieces_may_be_empty_or_tiny() {
    let chain = gather(&chain(1000, 18, 0)).unwrap();
    assert_eq!(packet(&chain).pieces().count(), 1);
    // Nothing in the first, and an Ethernet header cut to bytes.
    let slots = super::tests::chain(14, 14, 1);
    let chain = gather(&slots).unwrap();
    let packet = packet(&chain);
    assert_eq!((packet.size, packet.pieces().count()), (14, 14));
    assert!(packet.pieces().all(|piece| piece.size == 1 && piece.gref != GrantRef(100)));
}

#[test]
fn chains_are_taken_dropped_and_refused_by_their_length() {
    for after in [17, 18] {
        assert_eq!(packet(&gather(&chain(9000, after, 400)).unwrap()).size, 9000);
    }
    for after in [19, 20] {
        let chain = gather(&chain(9000, after, 400)).unwrap();
        let dropped = Dropped::TooManySlots { slots: usize::from(after) + 1, most: 19 };
        assert_eq!(chain.content(), Content::Dropped(dropped));
    }
    assert_eq!(gather(&chain(9000, 21, 400)), Err(Fault::SlotCount { most: 21 }));
}

#[test]
fn a_size_that_does_not_fit_loses_the_packet_only() {
    // 64 KiB and more: the size wrapped.
    let long = gather(&chain(1000, 16, 4096)).unwrap();
    let dropped = Dropped::TooLarge { pieces: 65_536, size: 1000 };
    assert_eq!(long.content(), Content::Dropped(dropped));
    for size in [0, 13] {
        let short = gather(&chain(size, 0, 0)).unwrap();
        let dropped = Dropped::TooShort { size: usize::from(size) };
        assert_eq!(short.content(), Content::Dropped(dropped));
    }
    assert_eq!(dropped.name(), "too_large");
}

#[test]
fn a_piece_that_crosses_its_page_is_a_fault() {
    let crosses = |offset, size| Err(Fault::CrossesPage { offset, size });
    assert_eq!(gather(&[request(1, 4000, 97, Flags::NONE)]), crosses(4000, 97));
    assert!(gather(&[request(1, 4000, 96, Flags::NONE)]).is_ok());
    let first = request(1, 0, 1000, Flags::MORE_DATA);
    assert_eq!(gather(&[first, request(2, 0xFFFF, 1, Flags::NONE)]), crosses(0xFFFF, 1));
    // The first is as large as the others leave it.
    let first = request(1, 0, 5000, Flags::MORE_DATA);
    assert_eq!(gather(&[first, request(2, 0, 900, Flags::NONE)]), crosses(0, 4100));
    assert!(gather(&[first, request(2, 0, 904, Flags::NONE)]).is_ok());
}

#[test]
fn extras_that_cannot_be_are_faults() {
    let first = request(1, 0, 3000, Flags::EXTRA_INFO);
    let with = |kind| gather(&[first, extra(false, kind)]).map(|_| ());
    for number in [0, 6, 255] {
        assert_eq!(with(Kind::Unknown(number)), Err(Fault::ExtraType { number }));
    }
    assert_eq!(with(Kind::Gso(Gso { size: 0, ..GSO })), Err(Fault::GsoSize));
    for protocol in [0, 3] {
        let kind = Kind::Gso(Gso { protocol, ..GSO });
        assert_eq!(with(kind), Err(Fault::GsoType { protocol }));
    }
    // Without this a chain of extras would have no end.
    let hash = extra(true, Kind::Hash(HASH));
    assert_eq!(gather(&[first, hash, hash]), Err(Fault::ExtraTwice { number: 4 }));
    assert_eq!(Fault::GsoSize.by(hypervisor::DomId::new(7).unwrap()).what, "gso_size");
}

#[test]
fn a_change_of_the_multicast_list_is_no_packet() {
    let address = [1, 0, 0x5E, 1, 2, 3];
    for change in [Multicast::Add(address), Multicast::Delete(address)] {
        let chain = gather(&multicast(9, change)).unwrap();
        assert_eq!(chain.content(), Content::Multicast(change));
        let answers: Vec<_> = chain.answers(Status::OKAY).collect();
        assert_eq!(answers[0], Response { id: 9, status: Status::OKAY });
        assert_eq!((answers.len(), answers[1].status), (2, Status::NULL));
    }
    let slots = [
        request(1, 0, 0, Flags::EXTRA_INFO.with(Flags::MORE_DATA)),
        extra(false, Kind::McastAdd(address)),
        request(2, 0, 100, Flags::NONE),
    ];
    let dropped = Dropped::MulticastData { slots: 1 };
    assert_eq!(gather(&slots).unwrap().content(), Content::Dropped(dropped));
}

#[test]
fn what_cannot_be_sent_is_not_split() {
    let piece = |size| Piece { gref: GrantRef(1), offset: 0, size };
    let of = |pieces: &[Piece]| {
        Split::new(pieces, &vec![0; pieces.len()], Offload::default()).map(|_| ()).unwrap_err()
    };
    assert_eq!(of(&[]), Unsendable::Pieces { pieces: 0 });
    assert_eq!(of(&[piece(100); 19]), Unsendable::Pieces { pieces: 19 });
    assert_eq!(of(&[piece(13)]), Unsendable::Size { size: 13 });
    assert_eq!(of(&[piece(4096); 16]), Unsendable::Size { size: 65_536 });
    assert_eq!(of(&[piece(4097)]), Unsendable::Piece { piece: piece(4097) });
    let ids = Split::new(&[piece(100)], &[], Offload::default()).map(|_| ());
    assert_eq!(ids, Err(Unsendable::Ids { ids: 0, pieces: 1 }));
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = (any::<u32>(), 0_u16..4096, 0_u16..=4096).prop_map(|(gref, offset, size)| Piece {
        gref: GrantRef(gref),
        offset,
        size: size.min(4096 - offset),
    });
    prop::collection::vec(piece, 1..=18)
}

fn offload() -> impl Strategy<Value = Offload> {
    use Checksum::{Blank, Unchecked, Validated};
    let checksum = prop_oneof![Just(Unchecked), Just(Validated), Just(Blank)];
    let gso = prop::option::of((1_u16.., 1_u8..=2));
    let hash = prop::option::of((0_u8..4, any::<u32>()));
    (checksum, gso, hash).prop_map(|(checksum, gso, hash)| Offload {
        checksum,
        gso: gso.map(|(size, protocol)| Gso { size, protocol, features: 0 }),
        hash: hash.map(|(of, value)| Hash { of, algorithm: Algorithm::TOEPLITZ, value }),
    })
}

proptest! {
    #[test]
    fn what_is_split_is_gathered(pieces in pieces(), offload in offload()) {
        let ids: Vec<u16> = (0..).take(pieces.len()).collect();
        let size: usize = pieces.iter().map(|piece| usize::from(piece.size)).sum();
        let split = Split::new(&pieces, &ids, offload);
        prop_assume!((14..=65_535).contains(&size));
        let split = split.unwrap();
        let slots: Vec<_> = split.slots().collect();
        prop_assert_eq!(slots.len(), split.slots_needed());
        let chain = gather(&slots).unwrap();
        let packet = packet(&chain);
        prop_assert_eq!(usize::from(packet.size), size);
        prop_assert_eq!(packet.offload, offload);
        let full: Vec<_> = pieces.into_iter().filter(|piece| piece.size > 0).collect();
        prop_assert_eq!(packet.pieces().collect::<Vec<_>>(), full);
        let answered: Vec<_> = chain
            .answers(Status::OKAY)
            .filter(|answer| answer.status != Status::NULL)
            .map(|answer| answer.id)
            .collect();
        prop_assert_eq!(answered, ids);
    }

    /// Whatever slots hold: a chain ends, its pieces lie in their pages and are as long as it, and
    /// every slot has an answer.
    #[test]
    fn any_slots_are_followed_to_an_end(
        slots in prop::collection::vec(
            (any::<[u8; 12]>(), 0_u8..16, 0_u16..5000, 0_u16..3000).prop_map(|(mut bytes, flags, offset, size)| {
                // Mostly plausible, for chains to come about.
                bytes[4..6].copy_from_slice(&(offset % 4096).to_le_bytes());
                bytes[6] = flags;
                bytes[10..12].copy_from_slice(&size.to_le_bytes());
                Slot(bytes)
            }),
            1..80,
        ),
    ) {
        let (mut gather, mut fed, mut answered) = (Gather::new(), 0, 0);
        for slot in &slots {
            fed += 1;
            match gather.feed(slot) {
                Ok(None) => {}
                Ok(Some(chain)) => {
                    answered += chain.slots();
                    prop_assert_eq!(answered, fed);
                    prop_assert_eq!(chain.answers(Status::OKAY).count(), chain.slots());
                    if let Content::Packet(packet) = chain.content() {
                        let size: usize = packet.pieces().map(|piece| usize::from(piece.size)).sum();
                        prop_assert_eq!(size, usize::from(packet.size));
                        prop_assert!(packet.pieces().all(|p| usize::from(p.offset) + usize::from(p.size) <= 4096));
                    }
                }
                Err(_) => break,
            }
            prop_assert!(fed - answered <= 21 + 5);
        }
    }
}
