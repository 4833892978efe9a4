use super::*;

const OWN: Mac = [2, 0, 0, 0, 0, 2];
const V4: [u8; 4] = [10, 0, 0, 2];
const V6: [u8; 16] = [0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn frame(ether_type: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1];
    bytes.extend(OWN);
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn ipv4(source: [u8; 4], number: u8, body: &[u8]) -> Vec<u8> {
    let len = 20 + u8::try_from(body.len()).unwrap();
    let mut bytes = vec![0x45, 0, 0, len, 0, 0, 0, 0, 64, number, 0, 0];
    bytes.extend(source);
    bytes.extend([10, 0, 0, 1]);
    bytes.extend(body);
    frame(0x0800, &bytes)
}

fn ipv6(source: [u8; 16], number: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, u8::try_from(body.len()).unwrap(), number, 255];
    bytes.extend(source);
    bytes.extend([0xFF; 16]);
    bytes.extend(body);
    frame(0x86DD, &bytes)
}

fn arp(mac: Mac, ip: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
    bytes.extend(mac);
    bytes.extend(ip);
    bytes.extend([0; 10]);
    frame(0x0806, &bytes)
}

/// A message of neighbour discovery with a target and one option.
fn discovery(kind: u8, target: [u8; 16], option: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(target);
    bytes.extend(option);
    bytes
}

fn listed() -> Sources {
    let addresses = vec![V4.into(), V6.into()];
    Sources { mac: Some(OWN), addresses: Some(addresses) }
}

fn allowed(sources: &Sources, packet: &[u8]) -> bool {
    sources.allow(packet, Headers::find(packet).ok().as_ref())
}

#[test]
fn without_a_filter_anything_goes() {
    let any = Sources::default();
    assert!(any.is_any());
    assert!(allowed(&any, &[0; 14]) && allowed(&any, &ipv4([1; 4], 1, &[])));
}

#[test]
fn an_ethernet_address_is_the_guests_own() {
    let own = Sources { mac: Some(OWN), addresses: None };
    for packet in [ipv4([9; 4], 1, &[]), frame(0x88CC, &[0; 46]), frame(0x0800, &[0; 3])] {
        assert!(allowed(&own, &packet));
        let mut other = packet.clone();
        other[11] = 3;
        assert!(!allowed(&own, &other));
    }
    assert!(allowed(&own, &arp(OWN, [9; 4])));
    assert!(!allowed(&own, &arp([2, 0, 0, 0, 0, 3], [9; 4])), "in ARP, too");
}

#[test]
fn ip_addresses_are_those_that_are_listed() {
    let sources = listed();
    for packet in [
        ipv4(V4, 1, &[]),
        ipv6(V6, 59, &[]),
        arp(OWN, V4),
        arp(OWN, [0; 4]),
        ipv4([0; 4], 17, &[0, 68, 0, 67, 0, 8, 0, 0]),
    ] {
        assert!(allowed(&sources, &packet), "{packet:02X?}");
    }
    for packet in [
        ipv4([10, 0, 0, 3], 1, &[]),
        ipv6([7; 16], 59, &[]),
        ipv6([0; 16], 59, &[]),
        arp(OWN, [10, 0, 0, 3]),
        ipv4([0; 4], 17, &[0, 68, 0, 53, 0, 8, 0, 0]),
        ipv4([0; 4], 1, &[]),
        frame(0x88CC, &[0; 46]),
        frame(0x0800, &[0; 3]),
        frame(0x0806, &[0; 20]),
    ] {
        assert!(!allowed(&sources, &packet), "{packet:02X?}");
    }
}

#[test]
fn behind_tags_the_same_holds() {
    let tagged = |packet: &[u8]| [&packet[..12], &[0x81, 0, 0, 7], &packet[12..]].concat();
    let sources = listed();
    assert!(allowed(&sources, &tagged(&arp(OWN, V4))));
    assert!(!allowed(&sources, &tagged(&arp(OWN, [10, 0, 0, 3]))));
    assert!(!allowed(&sources, &tagged(&ipv4([10, 0, 0, 3], 1, &[]))));
    // Three are more than are looked behind.
    assert!(!allowed(&sources, &tagged(&tagged(&tagged(&ipv4(V4, 1, &[]))))));
}

#[test]
fn neighbours_are_claimed_by_whom_they_are() {
    let sources = listed();
    let own = [&[2, 1][..], &OWN].concat();
    let other = [2, 1, 2, 0, 0, 0, 0, 3];
    let from = |source, message: &[u8]| allowed(&sources, &ipv6(source, 58, message));
    assert!(from(V6, &discovery(136, V6, &own)));
    assert!(!from(V6, &discovery(136, [7; 16], &own)), "another's address");
    assert!(!from(V6, &discovery(136, V6, &other)), "at another's link address");
    assert!(!from(V6, &discovery(136, V6, &[2, 0])), "an option without end");
    assert!(from(V6, &discovery(135, [7; 16], &own)), "a question");
    assert!(from([0; 16], &discovery(135, V6, &[])), "whether an address is free");
    assert!(!from([0; 16], &discovery(135, [7; 16], &[])), "somebody else's");
    assert!(!from(V6, &discovery(134, V6, &[])), "no router");
    assert!(from([0; 16], &[143, 0, 0, 0, 0, 0, 0, 0]), "listener reports");
    assert!(from(V6, &[128, 0, 0, 0]) && !from([0; 16], &[128, 0, 0, 0]), "an echo");
    assert!(!from(V6, &[]) && !from(V6, &[136, 0, 0]), "cut short");
    // Behind an extension.
    let behind = |message: &[u8]| ipv6(V6, 0, &[&[58, 0, 0, 0, 0, 0, 0, 0], message].concat());
    assert!(allowed(&sources, &behind(&discovery(136, V6, &own))));
    assert!(!allowed(&sources, &behind(&discovery(136, [7; 16], &own))));
}

#[test]
fn multicast_is_what_was_listed_once_the_guest_chose() {
    let groups = Groups::default();
    let [one, other] = [[1, 0, 0x5E, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]];
    let to = |to: Mac| [&to[..], &[0; 54]].concat();
    assert!(groups.wants(&to(one)));
    groups.choose(true);
    assert!(groups.change(Multicast::Add(one)));
    assert!(groups.wants(&to(one)) && !groups.wants(&to(other)));
    assert!(groups.wants(&to([0xFF; 6])) && groups.wants(&to(OWN)));
    assert!(groups.change(Multicast::Delete(one)) && !groups.wants(&to(one)));
    for n in 0..64 {
        assert!(groups.change(Multicast::Add([1, 0, 0, 0, 0, n])));
    }
    assert!(!groups.change(Multicast::Add(one)), "the list has an end");
    assert!(groups.change(Multicast::Add([1, 0, 0, 0, 0, 5])), "what is there is no news");
}
