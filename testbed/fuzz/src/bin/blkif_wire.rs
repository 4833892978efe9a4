//! Block requests in every layout: any bytes decode, and what they decode to survives a round trip.
#![no_main]

use ring::wire::blkif::{self, Blkif, Layout, Request, Segment, X86_32, X86_64};
use ring::{Protocol, protocol::SlotBytes};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    layout::<X86_32>(bytes);
    layout::<X86_64>(bytes);
    let mut again = vec![0; bytes.len()];
    let list: Vec<Segment> = blkif::segments(bytes).collect();
    let fit = blkif::encode_segments(&list, &mut again);
    assert_eq!(blkif::segments(&again[..fit * Segment::SIZE]).collect::<Vec<_>>(), list);
});

fn layout<L: Layout>(bytes: &[u8]) {
    let mut slot = L::Slot::ZERO;
    let len = bytes.len().min(L::Slot::LEN);
    slot.as_mut()[..len].copy_from_slice(&bytes[..len]);
    let request: Request = Blkif::<L>::decode_request(&slot);
    let mut encoded = L::Slot::ZERO;
    Blkif::<L>::encode_request(&request, &mut encoded);
    let again = Blkif::<L>::decode_request(&encoded);
    assert_eq!(format!("{again:?}"), format!("{request:?}"));

    let mut answer = L::Answer::ZERO;
    let len = bytes.len().min(L::Answer::LEN);
    answer.as_mut()[..len].copy_from_slice(&bytes[..len]);
    let response = Blkif::<L>::decode_response(&answer);
    let mut encoded = L::Answer::ZERO;
    Blkif::<L>::encode_response(&response, &mut encoded);
    assert_eq!(Blkif::<L>::decode_response(&encoded), response);
}
