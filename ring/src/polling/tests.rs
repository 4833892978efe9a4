use alloc::vec::Vec;

use super::Polling;

const US: u64 = 1_000;

/// Lets work run out at `now` and come back `gap` later, looking every microsecond. Says when it
/// came, and how long was spent looking.
fn wait(polling: &mut Polling, now: u64, gap: u64) -> (u64, u64) {
    let mut at = now;
    while at < now + gap {
        if !polling.look_again(at) {
            polling.woken(now + gap);
            return (now + gap, at - now);
        }
        at += US;
    }
    polling.busy(now + gap);
    (now + gap, gap)
}

#[test]
fn short_gaps_are_looked_through_after_a_few() {
    let mut polling = Polling::default();
    let mut now = 5;
    let mut looked = Vec::new();
    for _ in 0..10 {
        let (then, spent) = wait(&mut polling, now, 50 * US);
        looked.push(spent);
        now = then;
    }
    // At first it sleeps at once; later it looks for as long as the gap lasts.
    assert_eq!(looked[0], 0);
    assert_eq!(looked[9], 50 * US);
    assert!(polling.window() <= Polling::DEFAULT_MOST);
}

#[test]
fn a_gap_caught_late_makes_room_for_a_longer_one() {
    let mut polling = Polling::default();
    let mut now = 0;
    for _ in 0..3 {
        now = wait(&mut polling, now, 15 * US).0;
    }
    now = wait(&mut polling, now, 19 * US).0;
    assert_eq!(polling.window(), 38 * US);
    assert_eq!(wait(&mut polling, now, 30 * US).1, 30 * US);
    assert_eq!(polling.window(), 60 * US);
}

#[test]
fn an_idle_guest_is_not_looked_for() {
    let mut polling = Polling::default();
    let mut now = 0;
    for _ in 0..10 {
        now = wait(&mut polling, now, 20 * US).0;
    }
    assert!(polling.window() >= 20 * US);
    let mut looked = 0;
    for _ in 0..1000 {
        let (then, spent) = wait(&mut polling, now, 10_000 * US);
        looked += spent;
        now = then;
    }
    assert_eq!(polling.window(), 0);
    // All that it ever cost in ten seconds is the way down.
    assert!(looked < 2 * Polling::DEFAULT_MOST, "{looked} ns");
}

#[test]
fn a_burst_after_idleness_is_learned_again() {
    let mut polling = Polling::default();
    let mut now = wait(&mut polling, 0, 1_000_000 * US).0;
    assert_eq!(polling.window(), 0);
    for _ in 0..4 {
        now = wait(&mut polling, now, 25 * US).0;
    }
    assert_eq!(wait(&mut polling, now, 25 * US).1, 25 * US);
}

#[test]
fn the_ends_of_the_scale_do_not_learn() {
    let mut never = Polling::new(0);
    let mut always = Polling::new(u64::MAX);
    let mut now = 0;
    for gap in [1, 50 * US, 10_000 * US, 1, 1] {
        assert!(!never.look_again(now));
        never.woken(now + gap);
        assert!(always.look_again(now));
        assert!(always.look_again(now + gap));
        now += gap;
    }
    assert_eq!((never.window(), always.window()), (0, u64::MAX));
}

#[test]
fn a_clock_at_its_end_or_that_stands_still_does_no_harm() {
    let mut polling = Polling::default();
    polling.woken(7);
    assert_eq!(polling.window(), 0);
    assert!(!polling.look_again(u64::MAX));
    polling.woken(0);
    assert!(polling.look_again(u64::MAX));
    assert!(polling.look_again(0));
    polling.woken(u64::MAX);
}
