//! Packets, byte for byte, there and back.

use std::cell::RefCell;

use proptest::prelude::*;

use super::driver::Queue;
use super::scene::{ABLE, Machine, Served, USUAL, tcp};
use hypervisor::vhost_user::{EVENT_INDEX, INDIRECT};

/// Bytes that look like nothing, from one end to the other.
fn noise(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed) ^ (n >> 8) as u8).collect()
}

#[test]
fn packets_of_every_size_come_back() {
    let served = Served::new();
    // Also without events by index, and without packets in several buffers.
    for features in [ABLE, ABLE & !EVENT_INDEX, USUAL, USUAL & !(EVENT_INDEX | INDIRECT)] {
        let mut machine = Machine::new(&served, features);
        for (seed, len) in [14, 15, 60, 1514, 4096, 9014, 16_000].into_iter().enumerate() {
            machine.there_and_back(&noise(len, seed as u8));
        }
    }
    let counted = served.counted();
    assert_eq!((counted.tx_packets, counted.rx_packets), (28, 28));
    assert_eq!(counted.lost.len(), 0, "{:?}", counted.lost);
}

#[test]
fn a_packet_fills_as_many_rooms_as_it_needs_and_no_more() {
    let served = Served::new();
    let mut machine = Machine::new(&served, ABLE);
    let packet = noise(5000, 3);
    for n in 0..5 {
        machine.rx.post(n, 1500);
    }
    machine.tx.send(&[&[0; 12], &packet[..]].concat(), &[], false);
    let came = machine.rx.receive();
    assert_eq!(came[10..12], [4, 0], "5012 bytes in rooms of 1500");
    assert_eq!(came[12..], packet);
    assert_eq!(machine.rx.next(), None);
    // The fifth is still there for the next one.
    machine.tx.send(&[&[0; 12], &packet[..1400]].concat(), &[], false);
    assert_eq!(machine.rx.receive()[12..], packet[..1400]);
}

#[test]
fn a_room_that_is_too_small_for_one_packet_serves_the_next() {
    let served = Served::new();
    let mut machine = Machine::new(&served, USUAL);
    machine.rx.post(0, 1526);
    machine.tx.send(&[&[0; 12], &noise(1515, 1)[..]].concat(), &[], false);
    let small = noise(1514, 2);
    machine.tx.send(&[&[0; 12], &small[..]].concat(), &[], false);
    assert_eq!(machine.rx.receive()[12..], small);
    assert_eq!(served.lost("unfit"), 1);
}

#[test]
fn two_pairs_are_served_at_once() {
    let served = Served::new();
    let features = ABLE | ring::wire::virtio_net::feature::MQ;
    let mut machine = Machine::new(&served, features);
    let [mut rx, mut tx] = [2, 3].map(|number| Queue::new(&mut machine.monitor, number));
    for seed in 0..20 {
        let [one, other] = [1, 2].map(|n| noise(n * 600, seed));
        rx.post(0, 0x2000);
        tx.send(&[&[0; 12], &one[..]].concat(), &[], false);
        machine.there_and_back(&other);
        assert_eq!(rx.receive()[12..], one);
    }
    assert_eq!(served.vif.counters().queues.len(), 2);
}

#[test]
fn a_packet_is_what_its_buffers_are_however_they_are_cut() {
    let served = Served::new();
    let machine = RefCell::new(Machine::new(&served, ABLE));
    let mut runner = proptest::test_runner::TestRunner::default();
    let cases = (
        14_usize..20_000,
        prop::collection::vec(1_usize..3000, 0..12),
        any::<bool>(),
        any::<u8>(),
        prop::collection::vec(100_u32..0x4000, 1..4),
    );
    runner
        .run(&cases, |(len, sizes, indirect, seed, rooms)| {
            let machine = &mut *machine.borrow_mut();
            let packet = noise(len, seed);
            let mut room = 0;
            for n in 0..16 {
                let now = rooms[usize::from(n) % rooms.len()];
                machine.rx.post(n, now);
                room += now as usize;
                if room >= len + 12 {
                    break;
                }
            }
            let mut n = 16;
            while room < len + 12 {
                machine.rx.post(n, 0x4000);
                room += 0x4000;
                n += 1;
            }
            machine.tx.send(&[&[0; 12], &packet[..]].concat(), &sizes, indirect);
            let came = machine.rx.receive();
            prop_assert!(came[12..] == packet, "{} bytes came of {len}", came.len() - 12);
            Ok(())
        })
        .unwrap();
    machine.borrow_mut().there_and_back(&tcp(100));
}
