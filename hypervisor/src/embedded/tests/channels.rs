//! Event channels: what crosses, what is masked, and what happens when an end goes.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;

use super::wait_until;
use crate::embedded::{Domain, EventChannel};
use crate::event::{Channel as _, Events as _};
use crate::testing::Machine;
use crate::{DomId, EventPort};

fn readable(fd: BorrowedFd<'_>, milliseconds: u16) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() == 1
}

/// Both ends, with the notification that binding raises taken.
fn bound(front: &Domain, back: &Domain) -> (EventChannel, EventChannel) {
    let one = front.allocate(back.id()).unwrap();
    let other = back.bind(front.id(), one.port()).unwrap();
    for end in [&one, &other] {
        assert!(end.take(), "binding notifies both");
        end.unmask();
        assert!(!readable(end.as_fd(), 0));
    }
    (one, other)
}

fn errno<T>(result: Result<T, crate::HostError>) -> i32 {
    result.err().unwrap().errno
}

#[test]
fn a_notification_crosses_once() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (one, other) = bound(&front, &back);
    one.notify().unwrap();
    assert!(readable(other.as_fd(), 0));
    assert!(!readable(one.as_fd(), 0));
    assert!(other.take());
    assert!(!other.take());
    assert!(!readable(other.as_fd(), 0));
    other.unmask();
    assert!(!other.take());
    other.notify().unwrap();
    assert!(one.take());
}

#[test]
fn a_masked_end_hears_of_it_when_it_listens_again() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (one, other) = bound(&front, &back);
    one.notify().unwrap();
    assert!(other.take());
    for _ in 0..1000 {
        one.notify().unwrap();
    }
    assert!(!readable(other.as_fd(), 0));
    assert!(!other.take());
    other.unmask();
    assert!(readable(other.as_fd(), 0));
    assert!(other.take());
    other.unmask();
    assert!(!other.take());
}

#[test]
fn a_storm_costs_one_wake_up() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (one, other) = bound(&front, &back);
    for _ in 0..100_000 {
        one.notify().unwrap();
    }
    assert!(other.take());
    other.unmask();
    assert!(!other.take());
    assert!(!readable(other.as_fd(), 0));
}

#[test]
fn only_whom_it_was_made_for_can_bind() {
    let machine = Machine::new();
    let (front, back, other) =
        (machine.domain("front"), machine.domain("back"), machine.domain("other"));
    let one = front.allocate(back.id()).unwrap();
    assert_ne!(one.port(), EventPort(0));
    assert_eq!(errno(other.bind(front.id(), one.port())), libc::EINVAL);
    assert_eq!(errno(back.bind(front.id(), EventPort(77))), libc::EINVAL);
    assert_eq!(errno(back.bind(other.id(), one.port())), libc::EINVAL);
    let bound = back.bind(front.id(), one.port()).unwrap();
    assert_eq!(errno(back.bind(front.id(), one.port())), libc::EINVAL);
    assert_eq!(errno(front.allocate(DomId::new(999).unwrap())), libc::ESRCH);
    drop(bound);
}

#[test]
fn a_closed_end_leaves_the_other_unbound_and_reserved() {
    let machine = Machine::new();
    let (front, back, other) =
        (machine.domain("front"), machine.domain("back"), machine.domain("other"));
    let (one, two) = bound(&front, &back);
    drop(two);
    // Sent into nothing, without an error.
    one.notify().unwrap();
    assert_eq!(errno(other.bind(front.id(), one.port())), libc::EINVAL);
    let two = back.bind(front.id(), one.port()).unwrap();
    assert!(two.take(), "the new end is notified");
    assert!(one.take(), "and so is the one that stayed");
    one.unmask();
    two.unmask();
    two.notify().unwrap();
    assert!(one.take());
    // The other way round: the end that was bound stays, and its allocator binds it.
    let port = two.port();
    drop(one);
    assert_eq!(errno(other.bind(back.id(), port)), libc::EINVAL);
    let one = front.bind(back.id(), port).unwrap();
    assert!(one.take());
    assert!(two.take());
}

#[test]
fn an_end_that_was_masked_is_notified_after_a_new_binding() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (one, two) = bound(&front, &back);
    two.notify().unwrap();
    assert!(one.take());
    drop(two);
    let two = back.bind(front.id(), one.port()).unwrap();
    assert!(!one.take(), "it is masked");
    one.unmask();
    assert!(one.take());
    // The new end starts unmasked, whatever the end before it had done.
    assert!(two.take());
    drop(two);
    let two = back.bind(front.id(), one.port()).unwrap();
    assert!(readable(two.as_fd(), 0));
    assert!(two.take());
}

#[test]
fn ports_are_numbers_from_one_and_are_used_again() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let first = front.allocate(back.id()).unwrap();
    let second = front.allocate(back.id()).unwrap();
    assert_eq!((first.port(), second.port()), (EventPort(1), EventPort(2)));
    drop(first);
    assert_eq!(front.allocate(back.id()).unwrap().port(), EventPort(1));
}

#[test]
fn a_domain_can_send_to_itself() {
    let machine = Machine::new();
    let domain = machine.domain("self");
    let (one, two) = bound(&domain, &domain);
    assert_ne!(one.port(), two.port());
    one.notify().unwrap();
    assert!(two.take() && !one.take());
}

// The sender publishes work and notifies; the receiver sleeps only after it has unmasked and found
// nothing. If any interleaving lost a wake-up, the receiver would sleep for ever.
#[test]
fn no_wake_up_is_lost() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (one, other) = bound(&front, &back);
    let (work, over) = (AtomicU64::new(0), AtomicBool::new(false));
    const ROUNDS: u64 = 200_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                work.store(round, Ordering::SeqCst);
                one.notify().unwrap();
                if round % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            over.store(true, Ordering::SeqCst);
        });
        let mut seen = 0;
        while seen < ROUNDS {
            assert!(readable(other.as_fd(), 60_000), "slept at {seen} of {ROUNDS}");
            if other.take() {
                seen = work.load(Ordering::SeqCst);
                other.unmask();
            }
        }
    });
    assert!(over.load(Ordering::SeqCst));
}

// The receiver's end is closed and bound again while the sender goes on, knowing nothing of it.
#[test]
fn a_sender_reaches_whoever_has_the_other_end() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let one = front.allocate(back.id()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                one.notify().unwrap();
                if one.take() {
                    one.unmask();
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..200 {
            let two = back.bind(front.id(), one.port()).unwrap();
            for _ in 0..3 {
                wait_until("a notification came", || two.take());
                two.unmask();
            }
        }
        over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_domain_cannot_take_all_descriptors() {
    let machine = Machine::new();
    let (greedy, other) = (machine.domain("greedy"), machine.domain("other"));
    let mut held = Vec::new();
    let refused = loop {
        match greedy.allocate(other.id()) {
            Ok(end) => held.push(end),
            Err(error) => break error,
        }
    };
    assert!(held.len() <= 1024, "{refused}");
    drop(held);
    drop(bound(&greedy, &other));
}

/// What may happen to a channel.
#[derive(Clone, Copy, Debug)]
enum Step {
    Notify(usize),
    Take(usize),
    Unmask(usize),
    Rebind(usize),
}

fn step() -> impl Strategy<Value = Step> {
    (0..7_u8, 0..2_usize).prop_map(|(kind, end)| match kind {
        0..=2 => Step::Notify(end),
        3 | 4 => Step::Take(end),
        5 => Step::Unmask(end),
        _ => Step::Rebind(end),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    // Against two bits an end, as event_channel.h describes them.
    #[test]
    fn agrees_with_two_bits_an_end(steps in prop::collection::vec(step(), 1..80)) {
        let machine = Machine::new();
        let domains = [machine.domain("front"), machine.domain("back")];
        let (one, other) = bound(&domains[0], &domains[1]);
        let mut ends = [one, other];
        let (mut pending, mut masked) = ([false; 2], [false; 2]);
        for step in steps {
            match step {
                Step::Notify(end) => {
                    ends[end].notify().unwrap();
                    pending[end ^ 1] = true;
                }
                Step::Take(end) => {
                    let expected = pending[end] && !masked[end];
                    prop_assert_eq!(ends[end].take(), expected);
                    if expected {
                        (pending[end], masked[end]) = (false, true);
                    }
                }
                Step::Unmask(end) => {
                    ends[end].unmask();
                    masked[end] = false;
                }
                Step::Rebind(end) => {
                    // While it is bound, it cannot be bound once more.
                    let (stays, port) = (domains[end ^ 1].id(), ends[end ^ 1].port());
                    prop_assert!(domains[end].bind(stays, port).is_err());
                    let gone = ends[end].port();
                    let spare = domains[end].allocate(stays).unwrap();
                    drop(std::mem::replace(&mut ends[end], spare));
                    ends[end] = domains[end].bind(stays, port).unwrap();
                    prop_assert_eq!(ends[end].port(), gone);
                    (pending, masked[end]) = ([true; 2], false);
                }
            }
            for end in 0..2 {
                prop_assert_eq!(readable(ends[end].as_fd(), 0), pending[end] && !masked[end]);
            }
        }
    }
}
