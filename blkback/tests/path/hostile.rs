//! A guest that lies. Whatever it does, the queue answers or ends in order, counts what it saw by
//! name, and leaves nothing mapped; and other queues go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkback::policy::acquire::Reach;
use blkback::queue::{Command, Ended};
use blkback::validate::Rules;
use hypervisor::event::Channel;
use hypervisor::memory::{Access, Granting, Memory, Revoked};
use hypervisor::{GrantRef, PAGE_SIZE};
use proptest::prelude::*;
use ring::wire::blkif::{Indirect, Request, Segment, Status, operation};

use crate::scene::{Guest, PATIENCE, Scene, Served, disk};
use crate::script::{Script, Scripted};

const WAYS: [Reach; 3] =
    [Reach::Persistent { pages: 16 }, Reach::Map, Reach::Copy { pages: Reach::COPY_PAGES }];

fn serve(scene: &Scene, guest: &Guest, reach: Reach) -> Served {
    let mut rules = Rules::new();
    (rules.discard, rules.secure_discard) = (true, true);
    let (disk, mut serving) = disk(1, rules);
    serving.reach = Some(reach);
    scene.serve_memory(guest, &Arc::new(serving), false, &disk)
}

/// The guest is answered as ever.
fn still_serves(guest: &mut Guest) {
    let page = guest.segments(0, 1);
    let read = guest.read(0, &page);
    assert_eq!(guest.ask(&read), Status::OKAY);
}

/// Writes the ring's request producer without anything behind it.
fn lie_about_producer(guest: &Guest, producer: u32) {
    guest.front.memory().write_at(0, &producer.to_le_bytes()).unwrap();
    guest.channel.notify().unwrap();
}

#[test]
fn a_wild_producer_ends_the_queue_and_no_other() {
    // One request was made and answered: up to 33 the ring could hold.
    for lie in [34, 1000, 0x8000_0000, u32::MAX, u32::MAX - 31] {
        let scene = Scene::new();
        let (mut liar, mut honest): (Guest, Guest) = (scene.guest(0, 2), scene.guest(0, 2));
        let mut other = {
            let served = serve(&scene, &honest, Reach::Map);
            still_serves(&mut honest);
            served
        };
        let served = serve(&scene, &liar, Reach::Persistent { pages: 16 });
        still_serves(&mut liar);
        lie_about_producer(&liar, lie);
        let Ended::Fault(fault) = served.ended() else { panic!("not a fault") };
        assert_eq!(fault.peer, scene.guest.id().into());
        assert_eq!(fault.what, "request_producer");
        assert!(fault.value.contains(&lie.to_string()), "{fault}");
        assert_eq!(liar.revoke(0), Revoked::Done);
        still_serves(&mut honest);
        assert!(!other.handle.as_mut().unwrap().is_over());
    }
}

#[test]
fn grants_that_are_none_are_refused_and_nothing_else_happens() {
    for reach in WAYS {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 4);
        let served = serve(&scene, &guest, reach);
        let mut refused = 0;
        for wild in [0, 1 << 14, 1 << 20, 0x7FFF_FFFF, u32::MAX] {
            if guest.grefs.contains(&GrantRef(wild)) {
                continue;
            }
            let wild = Segment { gref: GrantRef(wild), first: 0, last: 7 };
            let good = guest.segments(1, 1);
            for list in [vec![wild], vec![good[0], wild], vec![wild, good[0], wild]] {
                let read = guest.read(0, &list);
                assert_eq!(guest.ask(&read), Status::ERROR, "{wild:?} with {reach:?}");
                let write = guest.write(0, &list);
                assert_eq!(guest.ask(&write), Status::ERROR);
                refused += 2;
            }
            let mut grefs = [wild.gref; 8];
            grefs[1] = guest.grefs[0];
            let id = guest.id();
            let lists = Indirect { operation: operation::READ, sector: 0, count: 12, grefs };
            assert_eq!(guest.ask(&Request::indirect(id, lists)), Status::ERROR);
            refused += 1;
        }
        let seen = served.stats();
        assert_eq!(seen.refused.get("grant_refused"), Some(&refused), "{reach:?}");
        still_serves(&mut guest);
        served.tell(Command::Drain);
        assert_eq!(served.ended(), Ended::Drained);
        (0..4).for_each(|page| assert_eq!(guest.revoke(page), Revoked::Done, "{reach:?}"));
    }
}

#[test]
fn a_page_granted_for_reading_is_never_written() {
    for reach in WAYS {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 2);
        let served = serve(&scene, &guest, reach);
        assert_eq!(guest.revoke(1), Revoked::Done);
        let mut gref = [GrantRef(0)];
        guest.domain.grant(&guest.data, 1, Access::ReadOnly, &mut gref).unwrap();
        guest.grefs[1] = gref[0];
        guest.fill(1, 42);
        let before = guest.bytes(1);
        let page = guest.segments(1, 1);
        let write = guest.write(8, &page);
        assert_eq!(guest.ask(&write), Status::OKAY, "what it grants suffices, with {reach:?}");
        let read = guest.read(0, &page);
        assert_eq!(guest.ask(&read), Status::ERROR, "{reach:?}");
        assert_eq!(guest.bytes(1), before);
        assert_eq!(served.stats().refused.get("grant_refused"), Some(&1));
    }
}

#[test]
fn lengths_that_lie_are_refused_by_name() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 2);
    let served = serve(&scene, &guest, Reach::Map);
    let gref = guest.grefs[0];
    let segment = |first, last| [Segment { gref, first, last }];
    for (sector, list, name) in [
        (0, segment(0, 8), "segment_past_page"),
        (0, segment(9, 200), "segment_past_page"),
        (0, segment(7, 0), "segment_reversed"),
        (2048, segment(0, 0), "past_end"),
        (u64::MAX, segment(0, 7), "past_end"),
        (u64::MAX / 512, segment(0, 7), "past_end"),
    ] {
        let before = served.stats().refused.get(name).copied().unwrap_or(0);
        let write = guest.write(sector, &list);
        assert_eq!(guest.ask(&write), Status::ERROR, "{name}");
        assert_eq!(served.stats().refused[name], before + 1);
    }
    let none = guest.read(0, &[]);
    assert_eq!(guest.ask(&none), Status::ERROR);
    assert_eq!(served.stats().refused["empty"], 1);
    for count in [0, 257, 4096, 4097, u16::MAX] {
        let id = guest.id();
        let grefs = [gref; 8];
        let lists = Indirect { operation: operation::WRITE, sector: 0, count, grefs };
        assert_eq!(guest.ask(&Request::indirect(id, lists)), Status::ERROR, "{count}");
    }
    assert_eq!(served.stats().refused["segment_count"], 5);
    for inside in [2, 3, 5, 6, 255] {
        let id = guest.id();
        let lists = Indirect { operation: inside, sector: 0, count: 1, grefs: [gref; 8] };
        assert_eq!(guest.ask(&Request::indirect(id, lists)), Status::ERROR, "{inside}");
    }
    assert_eq!(served.stats().refused["indirect_operation"], 5);
    let discard = guest.discard(u64::MAX - 3, u64::MAX, true);
    assert_eq!(guest.ask(&discard), Status::ERROR);
    still_serves(&mut guest);
}

/// Writes one byte of the slot that request `index` lies in.
fn rewrite_slot(guest: &Guest, index: usize, at: usize, byte: u8) {
    guest.front.memory().write_at(64 + index * 112 + at, &[byte]).unwrap();
}

#[test]
fn a_slot_rewritten_after_submission_changes_nothing() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 2);
    let (disk, serving) = disk(1, Rules::new());
    let script = Script::default();
    script.lock().unwrap().hold = true;
    let theirs = (Arc::clone(&disk), Arc::clone(&script));
    let served = scene
        .serve(&guest, &Arc::new(serving), false, move || Ok(Scripted::new(theirs.0, 0, theirs.1)));
    guest.fill(0, 5);
    let page = guest.segments(0, 1);
    let write = guest.write(8, &page);
    guest.submit(&write);
    served.until("taken", |seen| seen.in_flight == 1);
    // Operation, count, id, sector, grant, first and last sector: all of them.
    (0..112).for_each(|at| rewrite_slot(&guest, 0, at, 0xFF));
    script.lock().unwrap().hold = false;
    served.wake();
    let answer = guest.answer();
    assert_eq!((answer.id, answer.operation), (write.id, operation::WRITE));
    assert_eq!(answer.status, Status::OKAY);
    let page = guest.segments(1, 1);
    let read = guest.read(8, &page);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!(guest.bytes(1), guest.bytes(0));
}

#[test]
fn slots_and_lists_rewritten_all_the_time_never_break_anything() {
    for reach in WAYS {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 4);
        let served = serve(&scene, &guest, reach);
        let stop = AtomicBool::new(false);
        let domain = guest.domain.clone();
        let own = Granting::allocate(&domain, 1, scene.back.id()).unwrap();
        let mut gref = [GrantRef(0)];
        domain.grant(&own, 0, Access::ReadWrite, &mut gref).unwrap();
        std::thread::scope(|scope| {
            let scribbled = &own;
            scope.spawn(|| {
                let mut byte = 0u8;
                while !stop.load(Ordering::Relaxed) {
                    byte = byte.wrapping_mul(5).wrapping_add(1);
                    let at = usize::from(byte) % 64 * 8;
                    scribbled.write_at(at, &[byte, byte, 0, 0, byte % 9, byte % 11, 0, 0]).unwrap();
                }
            });
            for _ in 0..2000 {
                let id = guest.id();
                let mut grefs = [gref[0]; 8];
                grefs[7] = guest.grefs[0];
                let lists = Indirect { operation: operation::WRITE, sector: 0, count: 64, grefs };
                let status = guest.ask(&Request::indirect(id, lists));
                assert!(status == Status::OKAY || status == Status::ERROR);
            }
            stop.store(true, Ordering::Relaxed);
        });
        still_serves(&mut guest);
        served.tell(Command::Drain);
        assert_eq!(served.ended(), Ended::Drained);
    }
}

#[test]
fn one_id_submitted_many_times_is_answered_as_often() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let served = serve(&scene, &guest, Reach::Persistent { pages: 16 });
    let page = guest.segments(0, 1);
    let write = guest.write(0, &page);
    for _ in 0..32 {
        guest.push(&write);
    }
    guest.publish();
    for _ in 0..32 {
        assert_eq!(guest.answer().id, write.id);
    }
    assert!(guest.front.take_response().unwrap().is_none());
    assert_eq!(served.stats().writes, 32);
}

#[test]
fn overlapping_writes_all_end() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 4);
    let _served = serve(&scene, &guest, Reach::Map);
    // The same page as source and target, many times in one request, on the same sectors.
    let one = guest.segments(0, 1)[0];
    let same = [one; 11];
    for _ in 0..16 {
        let write = guest.write(3, &same);
        let read = guest.read(5, &same);
        guest.push(&write);
        guest.push(&read);
    }
    guest.publish();
    for _ in 0..32 {
        assert_eq!(guest.answer().status, Status::OKAY);
    }
}

#[test]
fn a_storm_of_events_is_not_listened_to_and_requests_are_still_served() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let served = serve(&scene, &guest, Reach::Map);
    still_serves(&mut guest);
    let began = Instant::now();
    while served.stats().storms < 20 {
        guest.channel.notify().unwrap();
        assert!(began.elapsed() < PATIENCE, "{:?}", served.stats());
    }
    still_serves(&mut guest);
    // When the storm is over the queue sleeps again.
    loop {
        let before = served.stats().sleeps;
        std::thread::sleep(Duration::from_millis(100));
        if served.stats().sleeps == before {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "never asleep again");
    }
    still_serves(&mut guest);
}

#[test]
fn more_grants_than_are_kept_mapped_only_cost_time() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 200);
    let served = serve(&scene, &guest, Reach::Persistent { pages: 16 });
    for round in 0..5 {
        for first in (0..198).step_by(11) {
            let pages = guest.segments(first, 11);
            let read = guest.read(round, &pages);
            assert_eq!(guest.ask(&read), Status::OKAY);
        }
        let seen = served.until("counted", |seen| seen.mapped_pages > 0);
        assert!(seen.mapped_pages <= 16, "{seen:?}");
    }
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    // Mostly plausible bytes, so that more than the first check is met.
    let byte = prop_oneof![4 => 0u8..10, 1 => any::<u8>()];
    proptest::collection::vec(byte, 112)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Slots full of noise: every one is answered once, with its own id, and the queue lives.
    #[test]
    fn noise_is_answered(
        slots in proptest::collection::vec(any_request(), 1..64),
        way in 0usize..WAYS.len(),
    ) {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 16);
        let served = serve(&scene, &guest, WAYS[way]);
        for (index, bytes) in slots.iter().enumerate() {
            let flush = guest.flush();
            guest.push(&flush);
            let at = 64 + (index % 32) * 112;
            guest.front.memory().write_at(at, bytes).unwrap();
            guest.publish();
            let answer = guest.answer();
            let mut id = [0; 8];
            id.copy_from_slice(&bytes[8..16]);
            prop_assert_eq!(answer.id, u64::from_le_bytes(id));
        }
        still_serves(&mut guest);
        served.tell(Command::Drain);
        prop_assert_eq!(served.ended(), Ended::Drained);
        (0..16).for_each(|page| assert_eq!(guest.revoke(page), Revoked::Done));
        prop_assert_eq!(guest.data.len(), 16 * PAGE_SIZE);
    }
}
