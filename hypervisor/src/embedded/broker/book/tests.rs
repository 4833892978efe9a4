//! The account of domains against what it promises.

use proptest::prelude::*;

use super::{Book, Left, Lifetime};
use crate::DomId;
use crate::domain::{DomainSpec, DomainState};

fn spec(name: &str, memory_kib: u64) -> DomainSpec {
    DomainSpec { memory_kib, ..DomainSpec::new(name) }
}

fn dom(number: u16) -> DomId {
    DomId::new(number).unwrap()
}

#[test]
fn numbers_ascend_and_are_not_reused_at_once() {
    let mut book = Book::new(1 << 20);
    let one = book.create(&spec("a", 64), Lifetime::UntilLeft).unwrap();
    book.end(one, false).unwrap();
    let two = book.create(&spec("a", 64), Lifetime::UntilLeft).unwrap();
    assert_eq!((one.get(), two.get()), (1, 2));
}

#[test]
fn numbers_wrap_below_the_reserved_ones_and_pass_over_those_in_use() {
    let mut book = Book::new(1 << 20);
    let one = book.create(&spec("living", 64), Lifetime::UntilLeft).unwrap();
    let two = book.create(&spec("dying", 64), Lifetime::UntilLeft).unwrap();
    book.end(two, true).unwrap();
    book.next = DomId::FIRST_RESERVED - 1;
    let last = book.create(&spec("last", 64), Lifetime::UntilLeft).unwrap();
    let wrapped = book.create(&spec("wrapped", 64), Lifetime::UntilLeft).unwrap();
    assert_eq!(one.get(), 1);
    assert_eq!(last.get(), 0x7FEF);
    assert_eq!(wrapped.get(), 3);
}

#[test]
fn every_number_in_use_is_an_error_and_not_a_hang() {
    let mut book = Book::new(u64::MAX);
    for number in 1..DomId::FIRST_RESERVED {
        let got = book.create(&spec(&format!("d{number}"), 4), Lifetime::UntilLeft).unwrap();
        book.end(got, true).unwrap();
    }
    let error = book.create(&spec("more", 4), Lifetime::UntilLeft).unwrap_err();
    assert!(error.to_string().contains("every number is in use"), "{error}");
    book.bury(dom(77));
    assert_eq!(book.create(&spec("more", 4), Lifetime::UntilLeft).unwrap(), dom(77));
}

#[test]
fn a_refusal_names_total_free_and_asked() {
    let mut book = Book::new(1000);
    book.create(&spec("a", 600), Lifetime::UntilLeft).unwrap();
    let error = book.create(&spec("b", 404), Lifetime::UntilLeft).unwrap_err().to_string();
    for part in ["404 KiB", "1000 KiB", "400 KiB"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    book.create(&spec("b", 400), Lifetime::UntilLeft).unwrap();
    assert_eq!(book.free_kib(), 0);
}

#[test]
fn a_lowered_target_is_free_for_others_and_may_be_gone_when_wanted_back() {
    let mut book = Book::new(1000);
    let a = book.create(&spec("a", 800), Lifetime::UntilLeft).unwrap();
    book.set_target(a, 400).unwrap();
    let b = book.create(&spec("b", 600), Lifetime::UntilLeft).unwrap();
    assert!(book.set_target(a, 800).is_err());
    assert_eq!(book.get(a).unwrap().target_kib, 400);
    book.end(b, false).unwrap();
    book.set_target(a, 800).unwrap();
    let error = book.set_target(a, 804).unwrap_err().to_string();
    assert!(error.contains("800 KiB"), "{error}");
}

#[test]
fn a_dying_domain_keeps_its_memory_and_number_but_not_its_name() {
    let mut book = Book::new(1000);
    let a = book.create(&spec("a", 800), Lifetime::UntilLeft).unwrap();
    book.end(a, true).unwrap();
    assert_eq!(book.iter().next().unwrap().1.state(), DomainState::Dying);
    assert_eq!(book.living(), 0);
    assert_eq!(book.free_kib(), 200);
    assert!(book.get(a).is_err());
    assert!(book.end(a, false).is_err());
    book.create(&spec("a", 200), Lifetime::UntilLeft).unwrap();
    book.bury(a);
    assert_eq!(book.free_kib(), 800);
}

#[test]
fn a_domain_runs_from_its_first_process_on_unless_held() {
    let mut book = Book::new(1000);
    let a = book.create(&spec("a", 100), Lifetime::UntilDestroyed).unwrap();
    assert_eq!(book.get(a).unwrap().state(), DomainState::Paused);
    book.enter(a).unwrap();
    assert_eq!(book.get(a).unwrap().state(), DomainState::Running);
    book.hold(a, true).unwrap();
    assert_eq!(book.get(a).unwrap().state(), DomainState::Paused);
    book.hold(a, false).unwrap();
    assert_eq!(book.leave(a), Left::Stays);
    assert_eq!(book.get(a).unwrap().state(), DomainState::Paused);
    book.enter(a).unwrap();
    assert_eq!(book.get(a).unwrap().state(), DomainState::Running);
}

#[test]
fn memory_is_promised_in_whole_pages() {
    let mut book = Book::new(1000);
    let a = book.create(&spec("a", 5), Lifetime::UntilLeft).unwrap();
    assert_eq!(book.get(a).unwrap().spec.memory_kib, 8);
    assert_eq!(book.free_kib(), 992);
    book.set_target(a, 1).unwrap();
    assert_eq!(book.get(a).unwrap().target_kib, 4);
    book.set_target(a, 7).unwrap();
    assert!(book.set_target(a, 9).is_err());
}

#[test]
fn a_tied_domain_ends_with_its_last_process() {
    let mut book = Book::new(1000);
    let a = book.create(&spec("a", 100), Lifetime::UntilLeft).unwrap();
    book.enter(a).unwrap();
    book.enter(a).unwrap();
    assert_eq!(book.leave(a), Left::Stays);
    assert_eq!(book.leave(a), Left::Ended);
}

#[test]
fn what_is_out_of_range_is_refused_and_says_why() {
    let mut book = Book::new(1 << 20);
    let name = |name: &str| spec(name, 64);
    let bad = [
        (name(""), "empty"),
        (name(&"x".repeat(65)), "64 bytes"),
        (name("12"), "number"),
        (name("a/b"), "may have"),
        (name("a b"), "may have"),
        (name("-rf"), "option"),
        (spec("a", 0), "at least one page"),
        (DomainSpec { vcpus: 0, ..name("a") }, "1 to 128"),
        (DomainSpec { vcpus: 129, ..name("a") }, "1 to 128"),
        (DomainSpec { weight: 0, ..name("a") }, "1 to 65535"),
        (DomainSpec { cap: 101, ..name("a") }, "at most 100"),
        (spec("a", u64::MAX), "does not fit"),
    ];
    for (spec, part) in bad {
        let error = book.create(&spec, Lifetime::UntilLeft).unwrap_err().to_string();
        assert!(error.contains(part), "{spec:?}: {error}");
    }
    assert_eq!(book.iter().count(), 0);
    let a = book.create(&name("a"), Lifetime::UntilLeft).unwrap();
    let error = book.create(&name("a"), Lifetime::UntilLeft).unwrap_err().to_string();
    assert!(error.contains("domain 1 already"), "{error}");
    assert!(book.set_scheduling(a, 0, 0).is_err());
    assert!(book.set_scheduling(a, 1, 101).is_err());
    book.set_scheduling(a, 65535, 100).unwrap();
    assert!(book.set_target(dom(9), 4).is_err());
    assert!(book.hold(dom(9), true).is_err());
    assert!(book.enter(dom(9)).is_err());
    assert!(book.end(dom(9), false).is_err());
    assert_eq!(book.leave(dom(9)), Left::Stays);
}

/// One thing that may be asked of the book.
#[derive(Clone, Debug)]
enum Step {
    Create(u8, u64),
    Target(u8, u64),
    End(u8, bool),
    Bury(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amount = prop_oneof![Just(u64::MAX), 0..2000_u64];
    let step = prop_oneof![
        (0..12_u8, amount.clone()).prop_map(|(name, kib)| Step::Create(name, kib)),
        (0..20_u8, amount).prop_map(|(id, kib)| Step::Target(id, kib)),
        (0..20_u8, any::<bool>()).prop_map(|(id, used)| Step::End(id, used)),
        (0..20_u8).prop_map(Step::Bury),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn promises_never_exceed_the_total(steps in steps()) {
        let mut book = Book::new(4000);
        let mut lowest = 0;
        for step in steps {
            match step {
                Step::Create(name, kib) => {
                    let free = book.free_kib();
                    if let Ok(id) = book.create(&spec(&format!("n{name}"), kib), Lifetime::UntilLeft) {
                        prop_assert!(kib <= free);
                        prop_assert!(id.get() > lowest, "numbers ascend");
                        lowest = id.get();
                    }
                }
                Step::Target(id, kib) => {
                    let before = book.get(dom(id.into())).map(|entry| entry.target_kib);
                    let done = book.set_target(dom(id.into()), kib).is_ok();
                    let after = book.get(dom(id.into())).map(|entry| entry.target_kib);
                    if done { prop_assert_eq!(after, Ok(kib.div_ceil(4) * 4)) } else { prop_assert_eq!(after, before) }
                }
                Step::End(id, used) => { let _ = book.end(dom(id.into()), used); }
                Step::Bury(id) => book.bury(dom(id.into())),
            }
            let sum: u128 = book.iter().map(|(_, entry)| u128::from(entry.target_kib)).sum();
            prop_assert!(sum <= 4000);
            prop_assert_eq!(sum + u128::from(book.free_kib()), 4000);
            for (_, entry) in book.iter() {
                prop_assert!(entry.target_kib <= entry.spec.memory_kib);
            }
            let mut names: Vec<_> = book.iter()
                .filter(|(_, entry)| entry.state() != DomainState::Dying)
                .map(|(_, entry)| entry.spec.name.clone()).collect();
            names.sort();
            let before = names.len();
            names.dedup();
            prop_assert_eq!(before, names.len());
        }
    }
}
