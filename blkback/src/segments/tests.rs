use hypervisor::GrantRef;
use proptest::prelude::*;
use ring::wire::blkif::Segment as Wire;

use super::*;

fn segment(first: u8, last: u8) -> Wire {
    Wire { gref: GrantRef(7), first, last }
}

fn placed(unit: u32, segments: &[Wire]) -> Result<u64, Refusal> {
    place(segments, unit, &mut Vec::new())
}

#[test]
fn units_become_bytes() {
    let mut segments = Vec::new();
    assert_eq!(place(&[segment(0, 7), segment(3, 3)], 512, &mut segments), Ok(4096 + 512));
    let page = GrantRef(7);
    let at = |offset| InPage { page, offset };
    assert_eq!(segments, [Segment { at: at(0), len: 4096 }, Segment { at: at(1536), len: 512 }]);
}

#[test]
fn segments_stay_in_their_pages() {
    let refused = |first, last| placed(512, &[segment(first, last)]);
    assert_eq!(refused(0, 8), Err(Refusal::SegmentPastPage));
    assert_eq!(refused(255, 255), Err(Refusal::SegmentPastPage));
    assert_eq!(refused(255, 0), Err(Refusal::SegmentReversed));
    assert_eq!(refused(5, 4), Err(Refusal::SegmentReversed));
    assert_eq!(refused(7, 7), Ok(512));
}

#[test]
fn large_sectors_demand_whole_ones_in_every_segment() {
    assert_eq!(placed(4096, &[segment(0, 7)]), Ok(4096));
    assert_eq!(placed(4096, &[segment(0, 3)]), Err(Refusal::Misaligned));
    // Two halves make a whole sector, but neither segment is one.
    assert_eq!(placed(4096, &[segment(0, 3), segment(0, 3)]), Err(Refusal::Misaligned));
    assert_eq!(placed(4096, &[segment(4, 7), segment(0, 3)]), Err(Refusal::Misaligned));
}

fn any_segment() -> impl Strategy<Value = Wire> {
    let edge = prop_oneof![0u8..9, any::<u8>()];
    (any::<u32>(), edge.clone(), edge).prop_map(|(gref, first, last)| Wire {
        gref: GrantRef(gref),
        first,
        last,
    })
}

proptest! {
    /// Whatever passes lies wholly inside its page, and consists of whole sectors.
    #[test]
    fn what_passes_is_sound(
        wire in proptest::collection::vec(any_segment(), 0..12),
        large in any::<bool>(),
    ) {
        let unit = if large { 4096 } else { 512 };
        let mut segments = Vec::new();
        if let Ok(len) = place(&wire, unit, &mut segments) {
            for segment in &segments {
                prop_assert!(segment.len > 0 && segment.len % unit == 0);
                prop_assert!(u32::from(segment.at.offset) + segment.len <= 4096);
            }
            let all: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
            prop_assert_eq!(all, len);
            prop_assert_eq!(segments.len(), wire.len());
        }
    }
}
