use hypervisor::GrantRef;
use proptest::prelude::*;
use ring::wire::blkif::Segment as Wire;

use super::*;

const DISK: u64 = 1000;

fn asked(action: Action, sector: u64, segments: &[Wire]) -> Asked<'_> {
    Asked { operation: 0, action, sector, sectors: 0, segments }
}

fn segment(first: u8, last: u8) -> Wire {
    Wire { gref: GrantRef(7), first, last }
}

fn check(rules: &Rules, asked: &Asked<'_>) -> Result<Checked, Refusal> {
    rules.check(asked, DISK, &mut Vec::new())
}

fn four_k() -> Rules {
    Rules { sector_size: 4096, ..Rules::new() }
}

#[test]
fn units_become_bytes() {
    let mut segments = Vec::new();
    let wire = [segment(0, 7), segment(3, 3)];
    let checked =
        Rules::new().check(&asked(Action::Write, 10, &wire), DISK, &mut segments).unwrap();
    assert_eq!(checked, Checked { action: Action::Write, offset: 5120, len: 4096 + 512 });
    let page = GrantRef(7);
    assert_eq!(
        segments,
        [Segment { page, offset: 0, len: 4096 }, Segment { page, offset: 1536, len: 512 }]
    );
}

#[test]
fn segments_stay_in_their_pages() {
    let rules = Rules::new();
    let refused = |first, last| check(&rules, &asked(Action::Read, 0, &[segment(first, last)]));
    assert_eq!(refused(0, 8), Err(Refusal::SegmentPastPage));
    assert_eq!(refused(255, 255), Err(Refusal::SegmentPastPage));
    assert_eq!(refused(255, 0), Err(Refusal::SegmentReversed));
    assert_eq!(refused(5, 4), Err(Refusal::SegmentReversed));
    assert!(refused(7, 7).is_ok());
}

#[test]
fn requests_stay_on_the_disk() {
    let rules = Rules::new();
    let read = |sector| check(&rules, &asked(Action::Read, sector, &[segment(0, 7)]));
    assert!(read(DISK - 8).is_ok());
    for sector in [DISK - 7, DISK, u64::MAX / 512, u64::MAX / 512 - 7, u64::MAX] {
        assert_eq!(read(sector), Err(Refusal::PastEnd), "{sector}");
    }
}

#[test]
fn large_sectors_demand_alignment_in_every_place() {
    let rules = four_k();
    let read = |sector, segments: &[Wire]| check(&rules, &asked(Action::Read, sector, segments));
    assert!(read(8, &[segment(0, 7)]).is_ok());
    assert_eq!(read(4, &[segment(0, 7)]), Err(Refusal::Misaligned));
    assert_eq!(read(8, &[segment(0, 3)]), Err(Refusal::Misaligned));
    // Two halves make a whole sector, but neither segment is one.
    assert_eq!(read(8, &[segment(0, 3), segment(0, 3)]), Err(Refusal::Misaligned));
    assert_eq!(read(8, &[segment(4, 7), segment(0, 3)]), Err(Refusal::Misaligned));
}

#[test]
fn nothing_to_move_is_for_flushes_and_barriers() {
    let rules = Rules::new();
    for action in [Action::Read, Action::Write, Action::Discard { secure: false }] {
        let rules = Rules { discard: true, ..rules };
        assert_eq!(check(&rules, &asked(action, 0, &[])), Err(Refusal::Empty), "{action:?}");
    }
    for action in [Action::Flush, Action::Barrier] {
        // Whatever stands in the sector field means nothing then.
        let checked = check(&rules, &asked(action, u64::MAX, &[]));
        assert_eq!(checked, Ok(Checked { action, offset: 0, len: 0 }));
    }
}

#[test]
fn a_read_only_disk_is_only_read_and_flushed() {
    let rules = Rules { read_only: true, discard: true, ..Rules::new() };
    let one = [segment(0, 7)];
    assert!(check(&rules, &asked(Action::Read, 0, &one)).is_ok());
    assert!(check(&rules, &asked(Action::Flush, 0, &[])).is_ok());
    for action in [Action::Write, Action::Flush, Action::Barrier] {
        assert_eq!(check(&rules, &asked(action, 0, &one)), Err(Refusal::ReadOnly), "{action:?}");
    }
    let discard = Asked { sectors: 8, ..asked(Action::Discard { secure: false }, 0, &[]) };
    assert_eq!(check(&rules, &discard), Err(Refusal::ReadOnly));
}

#[test]
fn discards_are_checked_like_transfers() {
    let discard = |rules: &Rules, sector, sectors, secure| {
        let asked = Asked { sectors, ..asked(Action::Discard { secure }, sector, &[]) };
        check(rules, &asked)
    };
    assert_eq!(discard(&Rules::new(), 0, 8, false), Err(Refusal::NoDiscard));
    let rules = Rules { discard: true, ..Rules::new() };
    assert!(discard(&rules, 0, DISK, false).is_ok());
    for (sector, sectors) in [(1, DISK), (0, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        assert_eq!(discard(&rules, sector, sectors, false), Err(Refusal::PastEnd));
    }
    let secure = |rules: &Rules| discard(rules, 0, 8, true).unwrap().action;
    assert_eq!(secure(&rules), Action::Discard { secure: false }, "ignored where not offered");
    let rules = Rules { secure_discard: true, ..rules };
    assert_eq!(secure(&rules), Action::Discard { secure: true });
    let rules = Rules { discard: true, ..four_k() };
    assert_eq!(discard(&rules, 8, 4, false), Err(Refusal::Misaligned));
    assert_eq!(discard(&rules, 4, 8, false), Err(Refusal::Misaligned));
}

#[test]
fn refusals_have_names_of_their_own() {
    let mut names: Vec<_> = Refusal::ALL.iter().map(|refusal| refusal.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Refusal::ALL.len());
}

fn any_segment() -> impl Strategy<Value = Wire> {
    let edge = prop_oneof![0u8..9, any::<u8>()];
    (any::<u32>(), edge.clone(), edge).prop_map(|(gref, first, last)| Wire {
        gref: GrantRef(gref),
        first,
        last,
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Read),
        Just(Action::Write),
        Just(Action::Flush),
        Just(Action::Barrier),
        any::<bool>().prop_map(|secure| Action::Discard { secure }),
    ]
}

proptest! {
    /// Whatever passes is wholly inside the disk and its pages, and aligned.
    #[test]
    fn what_passes_is_sound(
        action in any_action(),
        sector in prop_oneof![0..DISK + 16, any::<u64>()],
        sectors in prop_oneof![0..DISK + 16, any::<u64>()],
        wire in proptest::collection::vec(any_segment(), 0..12),
        large in any::<bool>(),
        read_only in any::<bool>(),
    ) {
        let sector_size = if large { 4096u32 } else { 512 };
        let rules = Rules { sector_size, read_only, discard: true, secure_discard: true };
        let asked = Asked { operation: 0, action, sector, sectors, segments: &wire };
        let mut segments = Vec::new();
        if let Ok(checked) = rules.check(&asked, DISK, &mut segments) {
            let unit = u64::from(sector_size);
            prop_assert!(checked.offset + checked.len <= DISK * 512);
            prop_assert!(checked.offset % unit == 0 && checked.len % unit == 0);
            prop_assert!(!read_only || checked.len == 0 || action == Action::Read);
            for segment in &segments {
                prop_assert!(segment.len > 0);
                prop_assert!(usize::from(segment.offset) + usize::from(segment.len) <= 4096);
            }
            if !matches!(action, Action::Discard { .. }) {
                let all: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
                prop_assert_eq!(all, checked.len);
                prop_assert_eq!(segments.len(), wire.len());
            }
        }
    }
}
