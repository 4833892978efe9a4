//! Guests that break rules: what a buggy one does loses a packet, what only a hostile one does loses the
//! device, and nothing does more than that.

use hypervisor::GrantRef;
use netback::filter::Sources;
use netback::queue::Ended;
use proptest::prelude::*;
use ring::wire::netif::Status;
use ring::wire::netif::chain::Offload;
use ring::wire::netif::extra::{Extra, Gso, Kind};
use ring::wire::netif::tx::{Flags, Request, Slot};

use super::packets::Shape;
use super::scene::{Guest, Scene, Served, Setting, eventually};

const SMALL: Shape = Shape { v6: false, tcp: true, payload: 100, seed: 1 };

/// That the device still carries a packet.
fn still_serves(guest: &mut Guest, served: &mut Served) {
    guest.answers.clear();
    guest.send(&SMALL.bytes(), Offload::default(), &[]);
    assert_eq!(served.take().1, SMALL.bytes());
    assert_eq!(guest.answer(), Status::OKAY);
}

fn fault_of(slots: impl FnOnce(&mut Guest) -> Vec<Slot>) -> String {
    let scene = Scene::new();
    let (mut guest, mut served) = scene.serve(7, Setting::default());
    still_serves(&mut guest, &mut served);
    let slots = slots(&mut guest);
    guest.send_raw(&slots);
    match served.ended() {
        Ended::Fault(fault) => {
            assert_eq!(fault.peer, scene.guest.id().into());
            fault.what.into_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn chains_that_no_driver_makes_end_the_device() {
    let more = Flags::MORE_DATA;
    let cut = fault_of(|guest| vec![guest.request(more, 0, 200).into()]);
    assert_eq!(cut, "packet_cut");
    let cut = fault_of(|guest| vec![guest.request(Flags::EXTRA_INFO, 0, 200).into()]);
    assert_eq!(cut, "packet_cut");
    let long = fault_of(|guest| (0..30).map(|_| guest.request(more, 0, 1).into()).collect());
    assert_eq!(long, "slot_count");
    let crossing = fault_of(|guest| vec![guest.request(Flags::NONE, 4000, 200).into()]);
    assert_eq!(crossing, "crosses_page");
    let later = fault_of(|guest| {
        vec![guest.request(more, 0, 300).into(), guest.request(Flags::NONE, 4090, 100).into()]
    });
    assert_eq!(later, "crosses_page");
}

#[test]
fn extras_that_no_driver_makes_end_the_device() {
    let extra = |more, kind| Slot::from(Extra { more, kind });
    let with = |extras: Vec<Slot>| {
        fault_of(move |guest| {
            let first = guest.request(Flags::EXTRA_INFO, 0, 200).into();
            [vec![first], extras].concat()
        })
    };
    assert_eq!(with(vec![extra(false, Kind::Unknown(9))]), "extra_type");
    let headroom = extra(true, Kind::Xdp { headroom: 0 });
    assert_eq!(with(vec![headroom; 200]), "extra_twice");
    let gso = |size, protocol| extra(false, Kind::Gso(Gso { size, protocol, features: 0 }));
    assert_eq!(with(vec![gso(1448, 3)]), "gso_type");
    assert_eq!(with(vec![gso(0, 1)]), "gso_size");
}

#[test]
fn what_is_to_be_cut_may_say_any_length() {
    let scene = Scene::new();
    let (mut guest, mut served) = scene.serve(0, Setting::default());
    let whole = Shape { payload: 3000, ..SMALL }.bytes();
    let gso = Some(Gso { size: 1000, protocol: 1, features: 0 });
    for claim in [0_u16, 40, 1040, u16::MAX] {
        let mut packet = whole.clone();
        packet[16..18].copy_from_slice(&claim.to_be_bytes());
        guest.send(&packet, Offload { gso, ..Offload::default() }, &[]);
        let (header, got) = served.take();
        assert_eq!(guest.answer(), Status::OKAY, "{claim}");
        assert_eq!((header.gso_size, &got[14..34]), (1000, &whole[14..34]), "{claim}");
        assert_eq!(got[54..], whole[54..]);
    }
}

#[test]
fn indexes_that_cannot_be_end_the_device() {
    let scene = Scene::new();
    let (mut guest, mut served) = scene.serve(0, Setting::default());
    still_serves(&mut guest, &mut served);
    let memory = guest.tx.memory();
    hypervisor::memory::Memory::write_at(memory, 0, &5000_u32.to_le_bytes()).unwrap();
    hypervisor::event::Channel::notify(&guest.tx_channel).unwrap();
    assert!(matches!(served.ended(), Ended::Fault(_)));

    let (mut guest, mut served) = scene.serve(0, Setting::default());
    still_serves(&mut guest, &mut served);
    let memory = guest.rx.memory();
    hypervisor::memory::Memory::write_at(memory, 0, &5000_u32.to_le_bytes()).unwrap();
    let (header, bytes) = (netback::vnet::Header::default(), SMALL.bytes());
    served.put(&header, &bytes);
    assert!(matches!(served.ended(), Ended::Fault(_)));
}

#[test]
fn packets_that_cannot_be_are_answered_with_an_error_and_counted() {
    let scene = Scene::new();
    let (mut guest, mut served) = scene.serve(0, Setting::default());
    // A page that was never granted.
    let mut request = guest.request(Flags::NONE, 0, 200);
    request.gref = GrantRef(60_000);
    guest.send_raw(&[request.into()]);
    assert_eq!(guest.answer(), Status::ERROR);
    // Half of one.
    let (first, mut second) =
        (guest.request(Flags::MORE_DATA, 0, 200), guest.request(Flags::NONE, 0, 100));
    second.gref = GrantRef(60_000);
    guest.send_raw(&[first.into(), second.into()]);
    assert_eq!([guest.answer(), guest.answer()], [Status::ERROR; 2]);
    // Too short, and pieces of more than the whole.
    let short = guest.request(Flags::NONE, 0, 13);
    guest.send_raw(&[short.into()]);
    assert_eq!(guest.answer(), Status::ERROR);
    let (first, second) =
        (guest.request(Flags::MORE_DATA, 0, 200), guest.request(Flags::NONE, 0, 300));
    guest.send_raw(&[first.into(), second.into()]);
    assert_eq!([guest.answer(), guest.answer()], [Status::ERROR; 2]);
    // Twenty pieces.
    let mut slots: Vec<Slot> = vec![guest.request(Flags::MORE_DATA, 0, 100).into()];
    slots.extend((0..18).map(|_| Slot::from(guest.request(Flags::MORE_DATA, 0, 1))));
    slots.push(guest.request(Flags::NONE, 0, 1).into());
    guest.send_raw(&slots);
    for _ in 0..20 {
        assert_eq!(guest.answer(), Status::ERROR);
    }
    // A checksum to complete in what has none.
    let bytes = vec![0xFF; 60];
    let blank =
        Offload { checksum: ring::wire::netif::chain::Checksum::Blank, ..Default::default() };
    guest.send(&bytes, blank, &[]);
    assert_eq!(guest.answer(), Status::ERROR);
    still_serves(&mut guest, &mut served);
    let lost = served.stats().lost;
    let expected = [
        ("no_transport", 1),
        ("too_large", 1),
        ("too_many_slots", 1),
        ("too_short", 1),
        ("tx_grant", 2),
    ];
    let lost: Vec<_> = lost.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(lost, expected);
}

#[test]
fn a_guest_that_sends_as_another_is_not_heard() {
    let scene = Scene::new();
    let mut setting = Setting::default();
    let mut sources = Sources::default();
    sources.mac = Some([2, 0, 0, 0, 0, 2]);
    setting.serving = netback::queue::Serving::new(1, sources);
    let (mut guest, mut served) = scene.serve(0, setting);
    let mut other = SMALL.bytes();
    other[11] = 3;
    guest.send(&other, Offload::default(), &[]);
    assert_eq!(guest.answer(), Status::ERROR);
    still_serves(&mut guest, &mut served);
    assert_eq!(served.stats().lost.get("source"), Some(&1));
}

#[test]
fn pages_that_cannot_be_written_lose_their_packet_only() {
    let scene = Scene::new();
    let (mut guest, mut served) = scene.serve(0, Setting::default());
    guest.grefs.reverse();
    let good = guest.grefs.clone();
    guest.grefs.iter_mut().for_each(|gref| *gref = GrantRef(60_000));
    guest.post(1);
    guest.grefs = good;
    guest.grefs.reverse();
    let header = netback::vnet::Header::default();
    served.put(&header, &SMALL.bytes());
    served.until("the copy fails", |stats| stats.lost.get("rx_grant") == Some(&1));
    let response = loop {
        match guest.rx.take_response().unwrap() {
            Some(slot) => break slot.response(),
            None => guest.wait_rx(),
        }
    };
    assert_eq!(response.status, Status::ERROR.0);
}

/// A slot that looks more or less like a request, about pages of which some are the guest's.
fn any_slot() -> impl Strategy<Value = (Option<usize>, [u8; 12])> {
    let size = prop_oneof![Just(0_u16), Just(14), 14_u16..200, Just(4096), any::<u16>()];
    let offset = prop_oneof![3 => Just(0_u16), 1 => 0_u16..4096, 1 => any::<u16>()];
    let flags = prop_oneof![3 => Just(0_u16), 2 => Just(4), 2 => 0_u16..16, 1 => any::<u16>()];
    let page = prop_oneof![8 => (0_usize..256).prop_map(Some), 1 => Just(None)];
    // As an extra: GSO and hash, which a request's gref and offset lie over.
    let extra = prop_oneof![
        Just([1, 0, 0x50, 5, 1, 0, 0, 0, 0, 0, 0, 0]),
        Just([1, 1, 0x50, 5, 2, 0, 0, 0, 0, 0, 0, 0]),
        Just([4, 0, 1, 1, 9, 9, 9, 9, 0, 0, 0, 0]),
    ];
    let request = (size, offset, flags, page, any::<u16>(), any::<u32>());
    let request = request.prop_map(|(size, offset, flags, page, id, gref)| {
        let request = Request { gref: GrantRef(gref), offset, flags: Flags(flags), id, size };
        (page, request.encode())
    });
    prop_oneof![4 => request, 1 => extra.prop_map(|extra| (None, extra)), 1 => any::<[u8; 12]>()
        .prop_map(|bytes| (None, bytes))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_on_the_ring_is_answered_or_ends_the_device(
        slots in prop::collection::vec(any_slot(), 1..200),
    ) {
        let scene = Scene::new();
        let (mut guest, mut served) = scene.serve(0, Setting::default());
        let mut answered = 0;
        let raw: Vec<Slot> = slots
            .iter()
            .map(|(page, bytes)| {
                let mut bytes = *bytes;
                if let Some(page) = page {
                    bytes[..4].copy_from_slice(&guest.grefs[*page].0.to_le_bytes());
                }
                Slot(bytes)
            })
            .collect();
        guest.send_raw(&raw);
        eventually("answers, or an end", || {
            while guest.tx.take_response().unwrap().is_some() {
                answered += 1;
            }
            while served.far.take().is_some() {}
            served.handle().is_over() || answered == raw.len()
        });
        if served.handle().is_over() {
            let ended = served.ended();
            prop_assert!(matches!(ended, Ended::Fault(_)), "{:?}", ended);
        }
    }
}

#[test]
fn a_storm_of_events_is_not_listened_to() {
    let scene = Scene::new();
    let (mut guest, mut served) = scene.serve(0, Setting::default());
    still_serves(&mut guest, &mut served);
    eventually("a storm is seen", || {
        hypervisor::event::Channel::notify(&guest.tx_channel).unwrap();
        served.stats().storms > 3
    });
    still_serves(&mut guest, &mut served);
}
