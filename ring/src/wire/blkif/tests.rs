use alloc::vec;
use alloc::vec::Vec;

use hypervisor::GrantRef;
use proptest::prelude::*;

use super::*;
use crate::Fault;
use crate::protocol::SlotBytes;

/// Bytes with `parts` written at their offsets and zeroes between.
fn laid<const N: usize>(parts: &[(usize, &[u8])]) -> [u8; N] {
    let mut bytes = [0; N];
    for (offset, part) in parts {
        bytes[*offset..offset + part.len()].copy_from_slice(part);
    }
    bytes
}

fn both_ways<L: Layout>(bytes: &L::Slot, request: &Request) {
    assert_eq!(&Blkif::<L>::decode_request(bytes), request);
    let mut slot = L::Slot::ZERO;
    Blkif::<L>::encode_request(request, &mut slot);
    assert_eq!(slot.as_ref(), bytes.as_ref());
}

const ID: u64 = 0x8877_6655_4433_2211;
const ID_BYTES: [u8; 8] = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
const SECTOR: u64 = 0x0102_0304_0506_0708;
const SECTOR_BYTES: [u8; 8] = [8, 7, 6, 5, 4, 3, 2, 1];

/// The constants of io/blkif.h and io/protocols.h.
#[test]
fn values_are_those_of_the_headers() {
    assert_eq!(
        [
            operation::READ,
            operation::WRITE,
            operation::WRITE_BARRIER,
            operation::FLUSH_DISKCACHE,
            operation::DISCARD,
            operation::INDIRECT,
        ],
        [0, 1, 2, 3, 5, 6]
    );
    assert_eq!((Status::OKAY.0, Status::ERROR.0, Status::NOT_SUPPORTED.0), (0, -1, -2));
    assert_eq!((MAX_SEGMENTS, MAX_INDIRECT_PAGES, DISCARD_SECURE), (11, 8, 1));
    assert_eq!(SEGMENTS_PER_PAGE, 512);
    for (key, abi) in
        [("x86_32-abi", Abi::X86_32), ("x86_64-abi", Abi::X86_64), ("arm-abi", Abi::X86_64)]
    {
        assert_eq!(Abi::from_key(Some(key)), Ok(abi));
    }
    assert_eq!(Abi::from_key(Some(Abi::NATIVE_KEY)), Ok(Abi::NATIVE));
    assert_eq!(Abi::from_key(None), Ok(Abi::UNSAID));
    #[cfg(target_arch = "x86_64")]
    assert_eq!((Abi::UNSAID, Abi::NATIVE), (Abi::X86_32, Abi::X86_64));
    let error = Abi::from_key(Some("x86_16-abi")).unwrap_err();
    assert!(alloc::format!("{error}").contains("'x86_16-abi'"), "{error}");
}

/// `sizeof(union blkif_sring_entry)` and `__CONST_RING_SIZE(blkif, ...)` as a C compiler has them.
#[test]
fn sizes_are_those_of_the_headers() {
    assert_eq!((Abi::X86_64.slot_size(), Abi::X86_32.slot_size()), (112, 108));
    assert_eq!(<<X86_64 as Layout>::Answer as SlotBytes>::LEN, 16);
    assert_eq!(<<X86_32 as Layout>::Answer as SlotBytes>::LEN, 12);
    for abi in [Abi::X86_64, Abi::X86_32] {
        assert_eq!([1, 2, 16].map(|pages| abi.slots(pages)), [32, 64, 512]);
        assert_eq!(abi.slots(0), 0);
    }
}

/// `struct blkif_request`, `offsetof` by `offsetof`.
#[test]
fn a_transfer_lies_where_blkif_h_puts_it() {
    let segments: Vec<_> = (0..11_u8)
        .map(|n| Segment { gref: GrantRef(0x4030_2010 + u32::from(n)), first: n % 8, last: 7 })
        .collect();
    let wire: Vec<u8> =
        (0..11).flat_map(|n| [0x10 + n, 0x20, 0x30, 0x40, n % 8, 7, 0, 0]).collect();
    let transfer = Transfer { sector: SECTOR, segments: Segments::new(&segments).unwrap() };
    for (op, kind) in [
        (0, Kind::Read(transfer.clone())),
        (1, Kind::Write(transfer.clone())),
        (2, Kind::Barrier(transfer.clone())),
        (3, Kind::Flush(transfer)),
    ] {
        let request = Request { operation: op, id: ID, handle: 0xCA01, kind };
        let head: &[u8] = &[op, 11, 0x01, 0xCA];
        both_ways::<X86_64>(
            &laid(&[(0, head), (8, &ID_BYTES), (16, &SECTOR_BYTES), (24, &wire)]),
            &request,
        );
        both_ways::<X86_32>(
            &laid(&[(0, head), (4, &ID_BYTES), (12, &SECTOR_BYTES), (20, &wire)]),
            &request,
        );
    }
}

/// `struct blkif_request_discard`.
#[test]
fn a_discard_lies_where_blkif_h_puts_it() {
    let count = [1, 0, 0, 0, 0, 0, 0, 0x80];
    for secure in [false, true] {
        let discard = Discard { sector: SECTOR, sectors: 0x8000_0000_0000_0001, secure };
        let request = Request { handle: 0x0300, ..Request::discard(ID, discard) };
        let head: &[u8] = &[5, u8::from(secure), 0, 3];
        both_ways::<X86_64>(
            &laid(&[(0, head), (8, &ID_BYTES), (16, &SECTOR_BYTES), (24, &count)]),
            &request,
        );
        both_ways::<X86_32>(
            &laid(&[(0, head), (4, &ID_BYTES), (12, &SECTOR_BYTES), (20, &count)]),
            &request,
        );
    }
}

/// `struct blkif_request_indirect`.
#[test]
fn an_indirect_request_lies_where_blkif_h_puts_it() {
    let grefs: [u8; 32] = core::array::from_fn(|n| if n % 4 == 0 { n as u8 + 1 } else { 0 });
    let indirect = Indirect {
        operation: operation::WRITE,
        sector: SECTOR,
        count: 0x0C21,
        grefs: core::array::from_fn(|n| GrantRef(n as u32 * 4 + 1)),
    };
    let request = Request { handle: 0xCA01, ..Request::indirect(ID, indirect) };
    let head: &[u8] = &[6, 1, 0x21, 0x0C];
    let handle: &[u8] = &[0x01, 0xCA];
    let parts = [(0, head), (8, &ID_BYTES), (16, &SECTOR_BYTES), (24, handle), (28, &grefs)];
    both_ways::<X86_64>(&laid(&parts), &request);
    let parts = [(0, head), (4, &ID_BYTES), (12, &SECTOR_BYTES), (20, handle), (24, &grefs)];
    both_ways::<X86_32>(&laid(&parts), &request);
}

/// `struct blkif_response`, its padding zero (advisory 216).
#[test]
fn a_response_lies_where_blkif_h_puts_it() {
    let response = Response { id: ID, operation: 5, status: Status(-2) };
    let parts: [(usize, &[u8]); 3] = [(0, &ID_BYTES), (8, &[5]), (10, &[0xFE, 0xFF])];
    let (mut wide, mut narrow) = ([0; 16], [0; 12]);
    Blkif::<X86_64>::encode_response(&response, &mut wide);
    Blkif::<X86_32>::encode_response(&response, &mut narrow);
    assert_eq!((wide, narrow), (laid(&parts), laid(&parts)));
    assert_eq!(Blkif::<X86_64>::decode_response(&wide), response);
    assert_eq!(Blkif::<X86_32>::decode_response(&narrow), response);
}

#[test]
fn more_segments_than_fit_are_a_fault_and_no_over_read() {
    for claimed in [12, 255] {
        let slot = laid::<112>(&[(0, &[0, claimed]), (8, &ID_BYTES)]);
        let request = Blkif::<X86_64>::decode_request(&slot);
        let Kind::Read(transfer) = request.kind else { panic!("{request:?}") };
        assert_eq!(transfer.segments.claimed(), claimed);
        let fault = Fault::SegmentCount { count: u16::from(claimed), most: 11 };
        assert_eq!(transfer.segments.get(), Err(fault));
    }
    let list = vec![Segment { gref: GrantRef(1), first: 0, last: 7 }; 12];
    assert_eq!(Segments::new(&list), Err(Fault::SegmentCount { count: 12, most: 11 }));
    assert_eq!(Segments::new(&list[..11]).unwrap().get().unwrap(), &list[..11]);
}

#[test]
fn segments_beyond_the_claimed_are_not_read() {
    let mut slot = [0xFF; 112];
    slot[..2].copy_from_slice(&[1, 1]);
    let Kind::Write(transfer) = Blkif::<X86_64>::decode_request(&slot).kind else { panic!() };
    let only = Segment { gref: GrantRef(u32::MAX), first: 255, last: 255 };
    assert_eq!(transfer.segments, Segments::new(&[only]).unwrap());
}

#[test]
fn an_indirect_request_names_as_many_pages_as_its_segments_fill() {
    let of = |count, operation| Indirect {
        operation,
        sector: 0,
        count,
        grefs: core::array::from_fn(|n| GrantRef(n as u32)),
    };
    for (count, pages) in [(1, 1), (512, 1), (513, 2), (4096, 8)] {
        assert_eq!(pages_for(usize::from(count)), pages);
        assert_eq!(of(count, 0).pages(4096).unwrap().len(), pages);
    }
    for (count, most) in [(0, 4096), (257, 256), (4097, 4096), (4097, u16::MAX), (65535, 65535)] {
        assert_eq!(of(count, 0).pages(most), Err(Fault::SegmentCount { count, most }));
    }
    assert_eq!((of(1, 0).is_write(), of(1, 1).is_write()), (Ok(false), Ok(true)));
    for operation in [2, 3, 5, 6, 255] {
        assert_eq!(of(1, operation).is_write(), Err(Fault::IndirectOperation { operation }));
    }
}

#[test]
fn an_indirect_page_lists_512_segments() {
    let list: Vec<_> = (0..600).map(|n| Segment { gref: GrantRef(n), first: 1, last: 6 }).collect();
    let mut page = [0xFF; 4096];
    assert_eq!(encode_segments(&list, &mut page), 512);
    assert_eq!(page[8 * 511..], [0xFF, 1, 0, 0, 1, 6, 0, 0]);
    assert_eq!(segments(&page).len(), 512);
    assert!(segments(&page).eq(list[..512].iter().copied()));
    assert_eq!(encode_segments(&list[512..], &mut page), 88);
    assert!(segments(&page).take(88).eq(list[512..].iter().copied()));
    // A rest that is no whole segment is none.
    assert_eq!(segments(&page[..23]).len(), 2);
}

fn segment() -> impl Strategy<Value = Segment> {
    (any::<u32>(), any::<u8>(), any::<u8>()).prop_map(|(gref, first, last)| Segment {
        gref: GrantRef(gref),
        first,
        last,
    })
}

fn transfer() -> impl Strategy<Value = Transfer> {
    (any::<u64>(), prop::collection::vec(segment(), 0..=MAX_SEGMENTS))
        .prop_map(|(sector, list)| Transfer { sector, segments: Segments::new(&list).unwrap() })
}

fn request() -> impl Strategy<Value = Request> {
    let discard = (any::<u64>(), any::<u64>(), any::<bool>());
    let indirect = (any::<u8>(), any::<u64>(), any::<u16>(), any::<[u32; 8]>());
    let kind = prop_oneof![
        transfer().prop_map(|transfer| (0, Kind::Read(transfer))),
        transfer().prop_map(|transfer| (1, Kind::Write(transfer))),
        transfer().prop_map(|transfer| (2, Kind::Barrier(transfer))),
        transfer().prop_map(|transfer| (3, Kind::Flush(transfer))),
        discard.prop_map(|(sector, sectors, secure)| {
            (5, Kind::Discard(Discard { sector, sectors, secure }))
        }),
        indirect.prop_map(|(operation, sector, count, grefs)| {
            (6, Kind::Indirect(Indirect { operation, sector, count, grefs: grefs.map(GrantRef) }))
        }),
        prop_oneof![Just(4_u8), 7_u8..].prop_map(|operation| (operation, Kind::Unknown(operation))),
    ];
    (any::<u64>(), any::<u16>(), kind).prop_map(|(id, handle, (operation, kind))| Request {
        operation,
        id,
        handle,
        kind,
    })
}

fn round_trip<L: Layout>(request: &Request) {
    let mut slot = L::Slot::ZERO;
    Blkif::<L>::encode_request(request, &mut slot);
    assert_eq!(&Blkif::<L>::decode_request(&slot), request);
}

proptest! {
    #[test]
    fn every_request_survives_the_wire(request in request()) {
        round_trip::<X86_64>(&request);
        round_trip::<X86_32>(&request);
        round_trip::<Native>(&request);
    }

    #[test]
    fn every_response_survives_the_wire(id: u64, operation: u8, status: i16) {
        let response = Response { id, operation, status: Status(status) };
        let mut answer = [0; 12];
        Blkif::<X86_32>::encode_response(&response, &mut answer);
        prop_assert_eq!(Blkif::<X86_32>::decode_response(&answer), response);
    }

    /// Whatever a slot holds decodes, keeps its id and operation, and is answerable.
    #[test]
    fn every_slot_decodes(bytes in prop::collection::vec(any::<u8>(), 112)) {
        let wide: [u8; 112] = bytes.as_slice().try_into().unwrap();
        let request = Blkif::<X86_64>::decode_request(&wide);
        prop_assert_eq!(request.operation, bytes[0]);
        prop_assert_eq!(request.id.to_le_bytes(), &bytes[8..16]);
        let narrow: [u8; 108] = bytes[..108].try_into().unwrap();
        let request = Blkif::<X86_32>::decode_request(&narrow);
        prop_assert_eq!(request.operation, bytes[0]);
        prop_assert_eq!(request.id.to_le_bytes(), &bytes[4..12]);
    }
}
