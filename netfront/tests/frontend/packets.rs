//! What is done to a packet's checksum where the other end would not, and the multicast list.

use netfront::{Checksum, Config, Gso, Multicast, NetInfo, Offload, Offloads, Refused};
use ring::packet::transport;

use crate::backend::{Features, bytes, scene};

/// UDP over IPv4 or IPv6, behind VLAN tags, its checksum blank.
fn udp(v6: bool, tags: usize, payload: usize) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..tags {
        packet.extend([0x81, 0x00, 0x00, 0x07]);
    }
    let len = u16::try_from(8 + payload).unwrap();
    if v6 {
        packet.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend([17, 64]);
        packet.extend((0..32).map(|n| n * 7 + 1));
    } else {
        packet.extend([0x08, 0x00, 0x45, 0]);
        packet.extend((20 + len).to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    packet.extend([0x12, 0x34, 0x56, 0x78]);
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(bytes(payload, 9));
    transport::Checksum::find(&packet).unwrap().leave_blank(&mut packet);
    packet
}

const BLANK: Offload = Offload { checksum: Checksum::Blank, gso: None, hash: None };

#[test]
fn a_checksum_that_the_backend_does_not_complete_is_completed() {
    for (v4, v6, tags) in [(false, false, 0), (true, false, 1), (false, true, 2), (true, true, 0)] {
        let mut offloads = Offloads::ALL;
        (offloads.checksum_v4, offloads.checksum_v6) = (v4, v6);
        let features = Features { offloads, ..Features::default() };
        let (_machine, _guest, mut interface, mut backend) = scene(features, Config::default());
        for is_v6 in [false, true] {
            for payload in [5, 3000, 9000] {
                let packet = udp(is_v6, tags, payload);
                let queue = &mut interface.queues()[0];
                queue.send(&[&packet], BLANK).unwrap();
                queue.flush();
                backend.poll();
                let (got, offload) = backend.sent.pop().unwrap();
                // Linux's backend drops what it does not find behind a tag.
                let taken = tags == 0 && if is_v6 { v6 } else { v4 };
                let checksum = transport::Checksum::find(&got).unwrap();
                if taken {
                    assert_eq!((got, offload.checksum), (packet, Checksum::Blank));
                } else {
                    assert_eq!(offload.checksum, Checksum::Validated);
                    assert!(checksum.is_right(&got), "{tags} {is_v6} {payload}");
                }
            }
        }
    }
}

#[test]
fn no_backend_is_asked_to_cut_behind_a_vlan_tag() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let gso = Some(Gso { size: 1000, protocol: 1, features: 0 });
    let offload = Offload { gso, ..BLANK };
    let queue = &mut interface.queues()[0];
    for (tags, sent) in [(0, Ok(())), (1, Err(Refused::Segment)), (2, Err(Refused::Segment))] {
        assert_eq!(queue.send(&[&udp(false, tags, 3000)], offload), sent, "{tags} tags");
    }
    queue.flush();
    backend.poll();
    assert_eq!(backend.sent.len(), 1);
}

#[test]
fn a_checksum_that_there_is_not_cannot_be_completed() {
    let features = Features { offloads: Offloads::NONE, ..Features::default() };
    let (_machine, _guest, mut interface, mut backend) = scene(features, Config::default());
    let queue = &mut interface.queues()[0];
    for _ in 0..500 {
        // A refused packet's pages are free again.
        assert_eq!(queue.send(&[&bytes(100, 1)], BLANK), Err(Refused::Checksum));
    }
    queue.send(&[&udp(false, 0, 10)], BLANK).unwrap();
    queue.flush();
    backend.poll();
    assert_eq!(backend.sent.len(), 1);
}

#[test]
fn a_checksum_that_we_do_not_take_is_completed_when_it_comes_nevertheless() {
    let mut config = Config::default();
    config.receive = Offloads::NONE;
    let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config);
    let packet = udp(false, 0, 1000);
    // That the frontend asked for no such packets is lost on this backend.
    assert!(backend.give(0, &(packet.clone(), BLANK)));
    assert!(backend.give(0, &(bytes(100, 1), BLANK)));
    assert!(backend.give(0, &(bytes(100, 2), Offload::default())));
    let mut got = Vec::new();
    let offload = interface.queues()[0].receive_into(&mut got).unwrap();
    assert_eq!(offload.checksum, Checksum::Validated);
    assert!(transport::Checksum::find(&got).unwrap().is_right(&got));
    assert_eq!(interface.queues()[0].receive_into(&mut got), Some(Offload::default()));
    assert_eq!(got, bytes(100, 2), "the one without a checksum to complete is lost");
    assert_eq!(interface.queues()[0].receive_into(&mut got), None);
    assert_eq!(interface.counters().unusable, 1);
}

#[test]
fn the_multicast_list_is_the_backends_to_keep() {
    let mut config = Config::default();
    config.multicast_control = true;
    let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config.clone());
    assert_eq!(backend.front_key("request-multicast-control"), Some(1));
    let address = [1, 0, 0x5E, 0, 0, 1];
    let queue = &mut interface.queues()[0];
    queue.multicast(Multicast::Add(address)).unwrap();
    queue.send(&[&bytes(60, 1)], Offload::default()).unwrap();
    queue.multicast(Multicast::Delete(address)).unwrap();
    queue.flush();
    backend.poll();
    assert_eq!(backend.multicast, [Multicast::Add(address), Multicast::Delete(address)]);
    assert_eq!(backend.sent.len(), 1);
    interface.poll().unwrap();
    assert_eq!(interface.queues()[0].in_flight(), 0);

    let features = Features { multicast: false, ..Features::default() };
    let (_machine, _guest, mut interface, _backend) = scene(features, config);
    let refused = interface.queues()[0].multicast(Multicast::Add(address));
    assert_eq!(refused, Err(Refused::Multicast));
}

#[test]
fn what_the_toolstack_says_is_read() {
    let (_machine, _guest, interface, _backend) = scene(Features::default(), Config::default());
    let NetInfo { mac, mtu, carrier, .. } = *interface.info().unwrap();
    assert_eq!(mac, Some([0, 0x16, 0x3E, 1, 2, 3]));
    assert_eq!((mtu, carrier), (9000, true));
}

#[test]
fn the_carrier_is_followed() {
    let (_machine, _guest, mut interface, backend) = scene(Features::default(), Config::default());
    for up in [false, true] {
        backend.say(&[("carrier", u8::from(up).to_string())], hypervisor::xenbus::State::Connected);
        interface.poll().unwrap();
        assert_eq!(interface.info().unwrap().carrier, up);
    }
}
