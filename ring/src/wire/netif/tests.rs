use alloc::collections::BTreeSet;
use alloc::string::ToString;

use hypervisor::GrantRef;
use proptest::prelude::*;

use super::control::{Algorithm, Gref, GrefList, HashTypes, Operation};
use super::extra::{Extra, Gso, GsoProtocol, Hash, Kind};
use super::*;
use crate::layout::slots;
use crate::protocol::SlotBytes;

/// The constants of io/netif.h, RELEASE-4.17.
#[test]
fn values_are_those_of_the_header() {
    assert_eq!((SLOTS_MIN, MAX_TX_SIZE), (18, 0xFFFF));
    assert_eq!(
        [Status::DROPPED, Status::ERROR, Status::OKAY, Status::NULL],
        [-2, -1, 0, 1].map(Status)
    );
    use tx::Flags as T;
    assert_eq!(
        [T::CSUM_BLANK, T::DATA_VALIDATED, T::MORE_DATA, T::EXTRA_INFO],
        [1, 2, 4, 8].map(T)
    );
    use rx::Flags as R;
    assert_eq!(
        [R::DATA_VALIDATED, R::CSUM_BLANK, R::MORE_DATA, R::EXTRA_INFO, R::GSO_PREFIX],
        [1, 2, 4, 8, 16].map(R)
    );
    use extra::kind as e;
    assert_eq!([e::GSO, e::MCAST_ADD, e::MCAST_DEL, e::HASH], [1, 2, 3, 4]);
    assert_eq!(extra::MORE, 1);
    assert_eq!((GsoProtocol::TcpV4 as u8, GsoProtocol::TcpV6 as u8), (1, 2));
    use control::kind as c;
    assert_eq!(
        [
            c::INVALID,
            c::GET_HASH_FLAGS,
            c::SET_HASH_FLAGS,
            c::SET_HASH_KEY,
            c::GET_HASH_MAPPING_SIZE,
            c::SET_HASH_MAPPING_SIZE,
            c::SET_HASH_MAPPING,
            c::SET_HASH_ALGORITHM,
            c::GET_GREF_MAPPING_SIZE,
            c::ADD_GREF_MAPPING,
            c::DEL_GREF_MAPPING,
        ],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    );
    use control::Status as S;
    assert_eq!(
        [S::SUCCESS, S::NOT_SUPPORTED, S::INVALID_PARAMETER, S::BUFFER_OVERFLOW],
        [0, 1, 2, 3].map(S)
    );
    assert_eq!((Algorithm::NONE.0, Algorithm::TOEPLITZ.0), (0, 1));
    use HashTypes as H;
    assert_eq!([H::IPV4, H::IPV4_TCP, H::IPV6, H::IPV6_TCP], [1, 2, 4, 8].map(H));
    assert_eq!(Gref::READ_ONLY, 1);
}

/// What Linux's copy of the header (v5.9) has beyond RELEASE-4.17.
#[test]
fn values_of_xdp_are_those_of_linux() {
    assert_eq!((extra::kind::XDP, extra::KINDS), (5, 5));
    assert_eq!(keys::MAX_XDP_HEADROOM, 0x7FFF);
}

/// `sizeof(union netif_tx_sring_entry)` and its like, and `__CONST_RING_SIZE(netif_tx, 4096)`.
#[test]
fn sizes_are_those_of_the_header() {
    fn sizes<P: Protocol>() -> (usize, usize, u32) {
        (P::Slot::LEN, P::Answer::LEN, slots(4096, P::Slot::LEN))
    }
    assert_eq!(sizes::<Tx>(), (12, 4, 256));
    assert_eq!(sizes::<Rx>(), (8, 8, 256));
    assert_eq!(sizes::<Control>(), (16, 12, 128));
    assert_eq!((Extra::SIZE, Gref::SIZE, Gref::PER_PAGE), (8, 8, 512));
}

/// `struct netif_tx_request` and `struct netif_tx_response`, `offsetof` by `offsetof`.
#[test]
fn tx_lies_where_netif_h_puts_it() {
    let bytes = [0x10, 0x20, 0x30, 0x40, 0x51, 0x52, 0x06, 0x80, 0x71, 0x72, 0x81, 0x82];
    let request = tx::Request {
        gref: GrantRef(0x4030_2010),
        offset: 0x5251,
        flags: tx::Flags(0x8006),
        id: 0x7271,
        size: 0x8281,
    };
    assert_eq!(Tx::decode_request(&bytes).request(), request);
    let mut slot = [0; 12];
    Tx::encode_request(&request.into(), &mut slot);
    assert_eq!(slot, bytes);
    assert!(request.flags.has(tx::Flags::MORE_DATA.with(tx::Flags::DATA_VALIDATED)));
    assert!(!request.flags.has(tx::Flags::MORE_DATA.with(tx::Flags::EXTRA_INFO)));

    let response = tx::Response { id: 0x0201, status: Status::DROPPED };
    let mut answer = [0; 4];
    Tx::encode_response(&response, &mut answer);
    assert_eq!(answer, [0x01, 0x02, 0xFE, 0xFF]);
    assert_eq!(Tx::decode_response(&answer), response);
}

/// `struct netif_rx_request` and `struct netif_rx_response`.
#[test]
fn rx_lies_where_netif_h_puts_it() {
    let request = rx::Request { id: 0x0201, gref: GrantRef(0x0807_0605) };
    let mut slot = [0; 8];
    Rx::encode_request(&request, &mut slot);
    assert_eq!(slot, [1, 2, 0, 0, 5, 6, 7, 8]);
    assert_eq!(Rx::decode_request(&[1, 2, 0xFF, 0xFF, 5, 6, 7, 8]), request);

    let response =
        rx::Response { id: 0x0201, offset: 0x0403, flags: rx::Flags(0x0605), status: -2 };
    let mut answer = [0; 8];
    Rx::encode_response(&response.into(), &mut answer);
    assert_eq!(answer, [1, 2, 3, 4, 5, 6, 0xFE, 0xFF]);
    assert_eq!(Rx::decode_response(&answer).response(), response);
    assert!(response.flags.has(rx::Flags::DATA_VALIDATED));
    let failed = rx::Response::failed(request, rx::Flags::MORE_DATA);
    assert_eq!(failed.encode(), [1, 2, 0, 0, 4, 0, 0xFF, 0xFF]);
}

/// `struct netif_extra_info`, its padding zero; the same in a slot of either ring.
#[test]
fn extras_lie_where_netif_h_puts_them() {
    let address = [0x33, 0x33, 1, 2, 3, 4];
    let gso = Gso { size: 0x05B4, protocol: 2, features: 0x0807 };
    let hash = Hash { of: 3, algorithm: Algorithm::TOEPLITZ, value: 0x0403_0201 };
    for (bytes, kind) in [
        ([1, 1, 0xB4, 0x05, 2, 0, 7, 8], Kind::Gso(gso)),
        ([2, 0, 0x33, 0x33, 1, 2, 3, 4], Kind::McastAdd(address)),
        ([3, 0, 0x33, 0x33, 1, 2, 3, 4], Kind::McastDel(address)),
        ([4, 1, 3, 1, 1, 2, 3, 4], Kind::Hash(hash)),
        ([5, 0, 0x00, 0x01, 0, 0, 0, 0], Kind::Xdp { headroom: 256 }),
        ([6, 0, 0, 0, 0, 0, 0, 0], Kind::Unknown(6)),
    ] {
        let extra = Extra { more: bytes[1] == 1, kind };
        assert_eq!(Extra::decode(&bytes), extra);
        assert_eq!(extra.number(), bytes[0]);
        assert_eq!(rx::Slot::from(extra).0, bytes);
        assert_eq!(rx::Slot(bytes).extra(), extra);
        let slot = tx::Slot::from(extra);
        assert_eq!((&slot.0[..8], &slot.0[8..]), (&bytes[..], &[0; 4][..]));
        assert_eq!(slot.extra(), extra);
    }
    assert_eq!(gso.protocol(), Some(GsoProtocol::TcpV6));
    assert_eq!(Gso { protocol: 3, ..gso }.protocol(), None);
    assert_eq!(Gso::new(GsoProtocol::TcpV4, 1460).protocol(), Some(GsoProtocol::TcpV4));
}

/// `struct xen_netif_ctrl_request`, with the words that each type has data in.
#[test]
fn control_requests_lie_where_netif_h_puts_them() {
    let (gref, list) =
        (GrantRef(1), GrefList { queue: 1, gref: GrantRef(0x0203), entries: 0x0405_0607 });
    for (number, words, operation) in [
        (1, [0, 0, 0], Operation::GetHashFlags),
        (2, [0xF, 0, 0], Operation::SetHashFlags(HashTypes::ALL)),
        (3, [1, 40, 0], Operation::SetHashKey { gref, size: 40 }),
        (4, [0, 0, 0], Operation::GetHashMappingSize),
        (5, [128, 0, 0], Operation::SetHashMappingSize { entries: 128 }),
        (6, [1, 64, 32], Operation::SetHashMapping { gref, entries: 64, offset: 32 }),
        (7, [1, 0, 0], Operation::SetHashAlgorithm(Algorithm::TOEPLITZ)),
        (8, [3, 0, 0], Operation::GetGrefMappingSize { queue: 3 }),
        (9, [1, 0x0203, 0x0405_0607], Operation::AddGrefMapping(list)),
        (10, [1, 0x0203, 0x0405_0607], Operation::DelGrefMapping(list)),
        (0, [0, 0, 0], Operation::Unknown(0)),
        (11, [0, 0, 0], Operation::Unknown(11)),
    ] {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&[0xEE, 0xFF]);
        bytes[2] = number;
        for (word, room) in words.iter().zip(bytes[4..].chunks_exact_mut(4)) {
            room.copy_from_slice(&u32::to_le_bytes(*word));
        }
        let request = control::Request { id: 0xFFEE, operation };
        assert_eq!(Control::decode_request(&bytes), request);
        assert_eq!(operation.number(), u16::from(number));
        let mut slot = [0; 16];
        Control::encode_request(&request, &mut slot);
        assert_eq!(slot, bytes);
    }
}

/// `struct xen_netif_ctrl_response` and `struct xen_netif_gref`.
#[test]
fn control_responses_and_grefs_lie_where_netif_h_puts_them() {
    let request = control::Request { id: 0x0201, operation: Operation::GetHashMappingSize };
    let response = control::Response::to(&request, control::Status::BUFFER_OVERFLOW, 0x0C0B_0A09);
    let mut answer = [0; 12];
    Control::encode_response(&response, &mut answer);
    assert_eq!(answer, [1, 2, 4, 0, 3, 0, 0, 0, 9, 10, 11, 12]);
    assert_eq!(Control::decode_response(&answer), response);

    let gref = Gref { gref: GrantRef(0x0403_0201), flags: 0x0605, status: 0x0807 };
    assert_eq!(gref.encode(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(Gref::decode(&gref.encode()), gref);
    assert_eq!(gref.encode()[Gref::STATUS_OFFSET..], [7, 8]);
}

#[test]
fn statuses_have_their_names() {
    assert_eq!(Status::DROPPED.to_string(), "dropped");
    assert_eq!(Status(-9).to_string(), "status -9");
    assert_eq!(control::Status::NOT_SUPPORTED.to_string(), "not supported");
    assert_eq!(control::Status(9).to_string(), "status 9");
}

/// The names in io/netif.h, RELEASE-4.17.
#[test]
fn the_keys_of_the_header_are_there_once() {
    let names: BTreeSet<_> = keys::ALL.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), keys::ALL.len(), "a name twice");
    for name in [
        "feature-rx-notify",
        "feature-split-event-channels",
        "event-channel-tx",
        "event-channel-rx",
        "event-channel",
        "multi-queue-max-queues",
        "multi-queue-num-queues",
        "tx-ring-ref",
        "rx-ring-ref",
        "feature-no-csum-offload",
        "feature-ipv6-csum-offload",
        "feature-gso-tcpv4",
        "feature-gso-tcpv6",
        "feature-multicast-control",
        "feature-dynamic-multicast-control",
        "request-multicast-control",
        "trusted",
        "feature-ctrl-ring",
        "ctrl-ring-ref",
        "event-channel-ctrl",
        "carrier",
        "mtu",
    ] {
        assert!(names.contains(name), "{name} is missing");
    }
    for key in keys::ALL {
        if let keys::Value::Number { least, most, absent } = key.value {
            assert!(absent.is_none_or(|number| (least..=most).contains(&number)), "{key:?}");
        }
    }
}

proptest! {
    /// Whatever a slot holds decodes as either, and what it decodes to survives the wire.
    #[test]
    fn every_slot_decodes(bytes: [u8; 16]) {
        let slot = tx::Slot(*bytes.first_chunk().unwrap());
        prop_assert_eq!(tx::Slot::from(slot.request()), slot);
        let extra = slot.extra();
        prop_assert_eq!(tx::Slot::from(extra).extra(), extra);

        let slot = rx::Slot(*bytes.first_chunk().unwrap());
        prop_assert_eq!(rx::Slot::from(slot.response()), slot);
        prop_assert_eq!(rx::Slot::from(slot.extra()).extra(), slot.extra());
        let request = rx::Request::decode(&slot.0);
        prop_assert_eq!(rx::Request::decode(&request.encode()), request);

        let request = control::Request::decode(&bytes);
        prop_assert_eq!(control::Request::decode(&request.encode()), request);
        let answer = *bytes.first_chunk().unwrap();
        prop_assert_eq!(control::Response::decode(&answer).encode(), answer);
        let gref = *bytes.first_chunk().unwrap();
        prop_assert_eq!(Gref::decode(&gref).encode(), gref);
        let answer = *bytes.first_chunk().unwrap();
        prop_assert_eq!(tx::Response::decode(&answer).encode(), answer);
    }
}
