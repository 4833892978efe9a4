//! Network slots, control messages and packets: any bytes decode, what they decode to survives a
//! round trip, and what is found in a packet lies inside it.
#![no_main]

use ring::Protocol;
use ring::packet::flow::Flow;
use ring::packet::toeplitz::Key;
use ring::packet::transport::{Checksum, complete_ipv4};
use ring::packet::{Headers, Sum};
use ring::protocol::SlotBytes;
use ring::wire::netif::control::{Gref, HashTypes};
use ring::wire::netif::{Control, Rx, Tx, rx, tx};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    slots(bytes);
    packet(bytes);
    if let Some((what, rest)) = bytes.split_first() {
        let mut likely = rest.to_vec();
        if make_likely(*what, &mut likely).is_some() {
            packet(&likely);
        }
    }
});

/// Writes what chance seldom hits, as `what` says: tags, EtherType, version, lengths, protocol.
fn make_likely(what: u8, packet: &mut [u8]) -> Option<()> {
    let len = packet.len();
    let mut at = 12;
    for tag in [[0x88, 0xA8], [0x81, 0x00]].iter().take(usize::from(what & 3)) {
        packet.get_mut(at..at + 2)?.copy_from_slice(tag);
        at += 4;
    }
    let v6 = what & 4 != 0;
    packet.get_mut(at..at + 2)?.copy_from_slice(if v6 { &[0x86, 0xDD] } else { &[0x08, 0x00] });
    let ip = packet.get_mut(at + 2..)?;
    let first = ip.first_mut()?;
    let header = if v6 { 40 } else { 20 };
    *first = if v6 { 0x60 } else { 0x40 | (5 + (*first & 0xF) % 11) };
    // To the end or a little less.
    let all = len - (at + 2) - if v6 { header } else { 0 }.min(len - (at + 2));
    let claimed = u16::try_from(all).ok()?.saturating_sub(u16::from(what >> 6));
    let length = if v6 { 4 } else { 2 };
    ip.get_mut(length..length + 2)?.copy_from_slice(&claimed.to_be_bytes());
    if what & 8 != 0 {
        *ip.get_mut(if v6 { 6 } else { 9 })? = if what & 16 != 0 { 6 } else { 17 };
        if !v6 {
            // No fragment.
            ip.get_mut(6..8)?.fill(0);
        }
    }
    if what & 32 != 0 && !v6 {
        // No options, and for UDP a length that fits.
        *ip.first_mut()? = 0x45;
        ip.get_mut(24..26)?.copy_from_slice(&claimed.saturating_sub(20).to_be_bytes());
    }
    Some(())
}

/// A slot with as many of `bytes` as fit.
fn cut<S: SlotBytes>(bytes: &[u8]) -> S {
    let mut slot = S::ZERO;
    let len = bytes.len().min(S::LEN);
    slot.as_mut()[..len].copy_from_slice(&bytes[..len]);
    slot
}

fn slots(bytes: &[u8]) {
    let slot = Tx::decode_request(&cut(bytes));
    assert_eq!(tx::Slot::from(slot.request()), slot);
    assert_eq!(tx::Slot::from(slot.extra()).extra(), slot.extra());
    let slot = Rx::decode_response(&cut(bytes));
    assert_eq!(rx::Slot::from(slot.response()), slot);
    assert_eq!(rx::Slot::from(slot.extra()).extra(), slot.extra());
    let request = Rx::decode_request(&cut(bytes));
    assert_eq!(rx::Request::decode(&request.encode()), request);
    let request = Control::decode_request(&cut(bytes));
    assert_eq!(Control::decode_request(&request.encode()), request);
    let answer = cut(bytes);
    assert_eq!(Control::decode_response(&answer).encode(), answer);
    let answer = cut(bytes);
    assert_eq!(Tx::decode_response(&answer).encode(), answer);
    let gref = cut(bytes);
    assert_eq!(Gref::decode(&gref).encode(), gref);
}

fn packet(bytes: &[u8]) {
    let Ok(headers) = Headers::find(bytes) else { return };
    let Some(ip) = &headers.ip else { return };
    assert!(ip.at < ip.end && ip.end <= bytes.len());
    assert!(ip.addresses.range().end <= ip.end);
    if let Some(transport) = ip.transport {
        assert!(transport.at >= ip.addresses.range().end);
        assert!(transport.payload > transport.at && transport.payload <= ip.end);
    }
    let flow = Flow::of(bytes, &headers).expect("IP has a flow");
    assert!(flow.hash(HashTypes::ALL, &Key::EMPTY).is_some_and(|hash| hash.value == 0));

    let mut changed = bytes.to_vec();
    complete_ipv4(&mut changed, &headers);
    assert_eq!(Headers::find(&changed), Ok(headers.clone()), "a checksum changed the headers");
    let Ok(checksum) = Checksum::of(bytes, &headers) else { return };
    checksum.complete(&mut changed);
    assert!(checksum.is_right(&changed));
    // As a device does it, which adds up what is there to the end of the packet.
    let mut blank = changed.clone();
    blank.truncate(ip.end);
    checksum.leave_blank(&mut blank);
    let sum = Sum::of(&blank[checksum.start..]).checksum();
    let at = checksum.start + checksum.offset;
    let field = u16::from_be_bytes([changed[at], changed[at + 1]]);
    let shorter = checksum.protocol() == ring::packet::Protocol::Udp;
    assert!(shorter || sum == field, "{sum:#06x} and {field:#06x}");
}
