//! Packets both ways, whatever their sizes, pieces and offloads: byte for byte, in order.

use std::collections::VecDeque;

use netfront::{Checksum, Config, Gso, Offload, Offloads, Refused};
use proptest::prelude::*;
use ring::wire::netif::control::Algorithm;
use ring::wire::netif::extra::Hash;

use crate::backend::{Features, Packet, bytes, receive, scene};

#[derive(Clone, Debug)]
enum Step {
    /// The frontend sends, in pieces cut at these places.
    Send(usize, Offload, Vec<usize>),
    /// The frontend fills a place that has room for more than it then sends.
    Fill(usize, usize),
    /// The backend takes so many slots.
    Take(usize),
    /// The backend gives.
    Give(usize, Offload),
    /// The frontend polls.
    Poll,
    /// The frontend receives what there is.
    Receive,
}

fn offload() -> impl Strategy<Value = Offload> {
    let checksum =
        prop_oneof![Just(Checksum::Unchecked), Just(Checksum::Validated), Just(Checksum::Blank)];
    let gso = prop::option::of((1_u16.., 1_u8..=2));
    let hash = prop::option::of(any::<u32>());
    (checksum, gso, hash).prop_map(|(checksum, gso, hash)| {
        let gso = gso.map(|(size, protocol)| Gso { size, protocol, features: 0 });
        let hash = hash.map(|value| Hash { of: 0, algorithm: Algorithm::TOEPLITZ, value });
        // A packet to be cut has a blank checksum.
        let checksum = if gso.is_some() { Checksum::Blank } else { checksum };
        Offload { checksum, gso, hash }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let size = || {
        prop_oneof![
            14_usize..100,
            60_usize..1515,
            4090_usize..4100,
            14_usize..9000,
            14_usize..=65_535
        ]
    };
    let cuts = prop::collection::vec(any::<usize>(), 0..6);
    prop_oneof![
        4 => (size(), offload(), cuts).prop_map(|(size, offload, cuts)| {
            Step::Send(size, offload, cuts)
        }),
        2 => (size(), 0_usize..9000).prop_map(|(size, more)| Step::Fill(size, more)),
        3 => (1_usize..60).prop_map(Step::Take),
        // Received packets have no field for the whole's size to fit, so they may be longer.
        4 => (prop_oneof![size(), 65_530_usize..=65_549], offload())
            .prop_map(|(size, offload)| Step::Give(size, offload)),
        2 => Just(Step::Poll),
        3 => Just(Step::Receive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn packets_arrive_as_they_were(
        split: bool,
        headroom in prop_oneof![2 => Just(0_u16), 1 => Just(256)],
        low in 1_u32..80,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let features = Features { split, headroom, ..Features::default() };
        let mut config = Config::default();
        config.low = low;
        let (_machine, _guest, mut interface, mut backend) = scene(features, config);
        let (mut sent, mut given): (Vec<Packet>, Vec<Packet>) = Default::default();
        let mut waiting: VecDeque<Packet> = VecDeque::new();
        let mut received: Vec<Packet> = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            match step {
                Step::Send(size, offload, cuts) => {
                    let packet = bytes(*size, n);
                    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % size).collect();
                    cuts.extend([0, *size]);
                    cuts.sort_unstable();
                    let pieces: Vec<&[u8]> =
                        cuts.windows(2).map(|cut| &packet[cut[0]..cut[1]]).collect();
                    let queue = &mut interface.queues()[0];
                    match queue.send(&pieces, *offload) {
                        Ok(()) => sent.push((packet, *offload)),
                        Err(refused) => prop_assert_eq!(refused, Refused::Full),
                    }
                    queue.flush();
                }
                Step::Fill(size, more) => {
                    let packet = bytes(*size, n);
                    let queue = &mut interface.queues()[0];
                    match queue.place((size + more).min(65_535)) {
                        Ok(place) => {
                            queue.write(&place, &[&packet]);
                            queue.send_place(place, *size, Offload::default()).unwrap();
                            sent.push((packet, Offload::default()));
                        }
                        Err(refused) => prop_assert_eq!(refused, Refused::Full),
                    }
                    queue.flush();
                }
                Step::Take(most) => backend.take(0, *most),
                Step::Give(size, offload) => {
                    waiting.push_back((bytes(*size, n), *offload));
                    while let Some(packet) = waiting.pop_front() {
                        // What a backend that leaves headroom could not put into 17 pages.
                        let slots = packet.0.len().div_ceil(4096 - usize::from(headroom));
                        if slots > 17 {
                            continue;
                        }
                        if !backend.give(0, &packet) {
                            waiting.push_front(packet);
                            break;
                        }
                        given.push(packet);
                    }
                }
                Step::Poll => interface.poll().unwrap(),
                Step::Receive => received.extend(receive(&mut interface, 0)),
            }
        }
        backend.poll();
        interface.poll().unwrap();
        received.extend(receive(&mut interface, 0));
        prop_assert!(interface.ending().is_none(), "{:?}", interface.ending());
        prop_assert!(backend.sent == sent, "{} of {} were sent", backend.sent.len(), sent.len());
        // The hash is not asked for by this frontend, so a backend leaves it out.
        let given: Vec<Packet> =
            given.into_iter().map(|(b, o)| (b, Offload { hash: None, ..o })).collect();
        prop_assert!(received == given, "{} of {} came in", received.len(), given.len());
        prop_assert_eq!(interface.queues()[0].in_flight(), 0, "every page is free again");
        let counters = interface.counters();
        prop_assert_eq!((counters.sent, counters.received), (sent.len() as u64, given.len() as u64));
        prop_assert_eq!((counters.failed, counters.dropped, counters.unusable), (0, 0, 0));
    }
}

/// However long it goes on, no page is lost on the way.
#[test]
fn a_ring_full_of_the_largest_packets_again_and_again() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let packet = bytes(65_535, 1);
    let mut count = 0;
    for _ in 0..20 {
        let queue = &mut interface.queues()[0];
        while queue.send(&[&packet], Offload::default()).is_ok() {
            count += 1;
        }
        queue.flush();
        backend.poll();
        interface.poll().unwrap();
        while backend.give(0, &(packet.clone(), Offload::default())) {}
        for (got, _) in receive(&mut interface, 0) {
            assert_eq!(got, packet);
        }
    }
    // 16 slots each, and two kept for extras.
    assert_eq!(count, 20 * (256 / 16 - 1), "as many as the ring has room for");
    assert!(backend.sent.iter().all(|(sent, _)| *sent == packet));
    assert!(interface.counters().received >= 20);
}

#[test]
fn several_queues_do_not_mix() {
    let mut config = Config::default();
    config.queues = 3;
    let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config);
    assert_eq!((interface.queues().len(), backend.queues.len()), (3, 3));
    for number in 0..3 {
        let packet = (bytes(60 + number, number), Offload::default());
        interface.queues()[number].send(&[&packet.0], packet.1).unwrap();
        interface.queues()[number].flush();
        backend.take(number, 10);
        assert_eq!(backend.sent.pop(), Some(packet.clone()));
        assert!(backend.give(number, &packet));
        for other in 0..3 {
            let want = if other == number { vec![packet.clone()] } else { vec![] };
            assert_eq!(receive(&mut interface, other), want);
        }
    }
}

#[test]
fn without_sg_a_packet_has_a_page() {
    let features = Features { offloads: Offloads::NONE, ..Features::default() };
    let mut config = Config::default();
    config.receive = Offloads::NONE;
    let (_machine, _guest, mut interface, mut backend) = scene(features, config);
    let queue = &mut interface.queues()[0];
    assert_eq!(queue.longest(), 4096);
    queue.send(&[&bytes(4096, 1)], Offload::default()).unwrap();
    let refused = queue.send(&[&bytes(4097, 1)], Offload::default());
    assert_eq!(refused, Err(Refused::Size { size: 4097, most: 4096 }));
    let large =
        Offload { gso: Some(Gso { size: 1448, protocol: 1, features: 0 }), ..Offload::default() };
    assert_eq!(queue.send(&[&bytes(4096, 1)], large), Err(Refused::Segment));
    assert_eq!(
        queue.send(&[&bytes(13, 1)], Offload::default()),
        Err(Refused::Size { size: 13, most: 4096 })
    );
    queue.flush();
    backend.poll();
    assert_eq!(backend.sent.len(), 1);
    assert!(!backend.takes.sg && !backend.takes.gso_tcpv4);
    assert_eq!(backend.front_key("feature-no-csum-offload"), Some(1));
    for _ in 0..300 {
        backend.give(0, &(bytes(4096, 2), Offload::default()));
        assert_eq!(receive(&mut interface, 0).len(), 1);
    }
}
