use proptest::prelude::*;

use super::*;

const DISK: u64 = 1000;

fn asked(action: Action, sector: u64, len: u64) -> Asked {
    Asked { action, sector, len }
}

fn check(rules: &Rules, asked: &Asked) -> Result<Checked, Refusal> {
    rules.check(asked, DISK)
}

fn four_k() -> Rules {
    Rules { sector_size: 4096, ..Rules::new() }
}

#[test]
fn sectors_become_bytes() {
    let checked = Rules::new().check(&asked(Action::Write, 10, 4608), DISK).unwrap();
    assert_eq!(checked, Checked { action: Action::Write, offset: 5120, len: 4096 + 512 });
}

#[test]
fn requests_stay_on_the_disk() {
    let rules = Rules::new();
    let read = |sector| check(&rules, &asked(Action::Read, sector, 4096));
    assert!(read(DISK - 8).is_ok());
    for sector in [DISK - 7, DISK, u64::MAX / 512, u64::MAX / 512 - 7, u64::MAX] {
        assert_eq!(read(sector), Err(Refusal::PastEnd), "{sector}");
    }
}

#[test]
fn everything_is_a_multiple_of_the_disks_sectors() {
    for (rules, unit) in [(Rules::new(), 512), (four_k(), 4096)] {
        let read = |sector, len| check(&rules, &asked(Action::Read, sector, len));
        assert!(read(8, unit).is_ok());
        for wrong in [1, unit / 2, unit - 1, unit + 1] {
            assert_eq!(read(8, wrong), Err(Refusal::Misaligned), "{wrong} of {unit}");
        }
    }
    assert_eq!(check(&four_k(), &asked(Action::Read, 4, 4096)), Err(Refusal::Misaligned));
}

#[test]
fn ranges_pass_together_or_not_at_all() {
    let rules = Rules { discard: true, ..Rules::new() };
    let zero = |unmap| Action::Zero { unmap };
    let mut into = Vec::new();
    let all = [asked(zero(true), 8, 512), asked(zero(false), 1, 1024)];
    let first = rules.check_ranges(&all, DISK, &mut into).unwrap();
    assert_eq!(first, Checked { action: zero(true), offset: 4096, len: 1536 });
    assert_eq!(into[1], Checked { action: zero(false), offset: 512, len: 1024 });
    // A disk that gives nothing up zeroes in place.
    rules_keep(&all, &mut into);
    assert!(into.iter().all(|range| range.action == zero(false)), "{into:?}");
    for (wrong, refusal) in [
        (asked(zero(true), DISK, 512), Refusal::PastEnd),
        (asked(zero(true), 0, 0), Refusal::Empty),
        (asked(zero(true), 0, 511), Refusal::Misaligned),
    ] {
        let all = [all[0], wrong];
        assert_eq!(rules.check_ranges(&all, DISK, &mut into), Err(refusal));
    }
    assert_eq!(rules.check_ranges(&[], DISK, &mut into), Err(Refusal::Empty));
    let read_only = Rules { read_only: true, ..rules };
    assert_eq!(check(&read_only, &all[0]), Err(Refusal::ReadOnly));
}

fn rules_keep(all: &[Asked], into: &mut Vec<Checked>) {
    Rules::new().check_ranges(all, DISK, into).unwrap();
}

#[test]
fn what_is_only_named_costs_no_bytes_unless_it_is_written() {
    let mut rules = Rules::new();
    let zero = |unmap| Action::Zero { unmap };
    assert_eq!(rules.cost(Action::Write, 512, 0), (1, 512));
    assert_eq!(rules.cost(Action::Discard { secure: false }, 512, 0), (1, 0));
    assert_eq!(rules.cost(Action::Discard { secure: false }, 512, 7), (7, 0));
    assert_eq!(rules.cost(zero(false), 512, 0), (1, 0));
    rules.zeroes_are_written = true;
    assert_eq!(rules.cost(zero(false), 1024, 2), (2, 1024));
    assert_eq!(rules.cost(zero(true), 1024, 2), (2, 0));
}

#[test]
fn nothing_to_move_is_for_flushes_and_barriers() {
    let rules = Rules::new();
    for action in [Action::Read, Action::Write, Action::Discard { secure: false }] {
        let rules = Rules { discard: true, ..rules };
        assert_eq!(check(&rules, &asked(action, 0, 0)), Err(Refusal::Empty), "{action:?}");
    }
    for action in [Action::Flush, Action::Barrier] {
        // Whatever stands in the sector field means nothing then.
        let checked = check(&rules, &asked(action, u64::MAX, 0));
        assert_eq!(checked, Ok(Checked { action, offset: 0, len: 0 }));
    }
}

#[test]
fn a_read_only_disk_is_only_read_and_flushed() {
    let rules = Rules { read_only: true, discard: true, ..Rules::new() };
    assert!(check(&rules, &asked(Action::Read, 0, 4096)).is_ok());
    assert!(check(&rules, &asked(Action::Flush, 0, 0)).is_ok());
    let discard = Action::Discard { secure: false };
    for action in [Action::Write, Action::Flush, Action::Barrier, discard] {
        assert_eq!(check(&rules, &asked(action, 0, 4096)), Err(Refusal::ReadOnly), "{action:?}");
    }
}

#[test]
fn discards_are_checked_like_transfers() {
    let discard = |rules: &Rules, sector, len, secure| {
        check(rules, &asked(Action::Discard { secure }, sector, len))
    };
    assert_eq!(discard(&Rules::new(), 0, 4096, false), Err(Refusal::NoDiscard));
    let rules = Rules { discard: true, ..Rules::new() };
    assert!(discard(&rules, 0, DISK * 512, false).is_ok());
    for (sector, len) in [(1, DISK * 512), (0, u64::MAX), (u64::MAX, 512), (u64::MAX, u64::MAX)] {
        assert_eq!(discard(&rules, sector, len, false), Err(Refusal::PastEnd));
    }
    let secure = |rules: &Rules| discard(rules, 0, 4096, true).unwrap().action;
    assert_eq!(secure(&rules), Action::Discard { secure: false }, "ignored where not offered");
    let rules = Rules { secure_discard: true, ..rules };
    assert_eq!(secure(&rules), Action::Discard { secure: true });
    let rules = Rules { discard: true, ..four_k() };
    assert_eq!(discard(&rules, 8, 2048, false), Err(Refusal::Misaligned));
    assert_eq!(discard(&rules, 4, 4096, false), Err(Refusal::Misaligned));
}

#[test]
fn refusals_have_names_of_their_own() {
    let mut names: Vec<_> = Refusal::ALL.iter().map(|refusal| refusal.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Refusal::ALL.len());
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
    /// Whatever passes is wholly inside the disk, and aligned.
    #[test]
    fn what_passes_is_sound(
        action in any_action(),
        sector in prop_oneof![0..DISK + 16, any::<u64>()],
        len in prop_oneof![(0..DISK + 16).prop_map(|sectors| sectors * 512), any::<u64>()],
        large in any::<bool>(),
        read_only in any::<bool>(),
    ) {
        let sector_size = if large { 4096u32 } else { 512 };
        let rules = Rules {
            sector_size,
            read_only,
            discard: true,
            secure_discard: true,
            ..Rules::new()
        };
        if let Ok(checked) = rules.check(&Asked { action, sector, len }, DISK) {
            let unit = u64::from(sector_size);
            prop_assert!(checked.offset + checked.len <= DISK * 512);
            prop_assert!(checked.offset % unit == 0 && checked.len % unit == 0);
            prop_assert!(!read_only || checked.len == 0 || action == Action::Read);
            prop_assert_eq!(checked.len, len);
        }
    }
}
