//! When requests count as done, and what passes what, over an engine that fails and waits as told.

use std::sync::Arc;

use blkback::engine::Operation;
use blkback::engine::memory::Disk;
use blkback::queue::Serving;
use blkback::validate::Rules;
use proptest::prelude::*;
use ring::wire::blkif::{Kind, Request, Status, operation};

use crate::scene::{Guest, Scene, Served, disk};
use crate::script::{Script, Scripted};

struct Queues {
    guests: Vec<Guest>,
    served: Vec<Served>,
    script: Script,
}

/// Several queues of one device over one script.
fn queues(scene: &Scene, count: u16, serving: Serving, disk: &Arc<Disk>) -> Queues {
    let script = Script::default();
    let serving = Arc::new(serving);
    let guests: Vec<Guest> = (0..count).map(|_| scene.guest(0, 4)).collect();
    let start = |(queue, guest): (u16, &Guest)| {
        let (disk, script) = (Arc::clone(disk), Arc::clone(&script));
        scene.serve(guest, &serving, true, move || Ok(Scripted::new(disk, queue, script)))
    };
    let served = (0..count).zip(&guests).map(start).collect();
    Queues { guests, served, script }
}

/// A flush that carries what a write would.
fn flush_with_data(guest: &mut Guest, sector: u64) -> Request {
    let page = guest.segments(0, 1);
    let mut request = guest.write(sector, &page);
    let Kind::Write(data) = request.kind.clone() else { unreachable!() };
    (request.operation, request.kind) = (operation::FLUSH_DISKCACHE, Kind::Flush(data));
    request
}

#[test]
fn a_flush_that_fails_on_one_queue_fails_on_every_queue_from_then_on() {
    let scene = Scene::new();
    let (disk, serving) = disk(1, Rules::new());
    let mut all = queues(&scene, 2, serving, &disk);
    for guest in &mut all.guests {
        let flush = guest.flush();
        assert_eq!(guest.ask(&flush), Status::OKAY);
    }
    all.script.lock().unwrap().fail_flush = Some((0, libc::EIO));
    let flush = all.guests[0].flush();
    assert_eq!(all.guests[0].ask(&flush), Status::ERROR);
    all.script.lock().unwrap().fail_flush = None;
    for guest in &mut all.guests {
        let flush = guest.flush();
        assert_eq!(guest.ask(&flush), Status::ERROR);
        let barrier = guest.barrier(0, &[]);
        assert_eq!(guest.ask(&barrier), Status::ERROR);
        // Reads and writes promise nothing about power, and go on.
        let page = guest.segments(0, 1);
        let write = guest.write(0, &page);
        assert_eq!(guest.ask(&write), Status::OKAY);
    }
}

#[test]
fn a_flush_under_way_while_another_fails_is_not_answered_with_success() {
    let scene = Scene::new();
    let (disk, serving) = disk(1, Rules::new());
    let mut all = queues(&scene, 2, serving, &disk);
    all.script.lock().unwrap().hold_queue = Some(1);
    // Queue 1's flush is with the medium when queue 0's is found to have failed.
    let second = all.guests[1].flush();
    all.guests[1].submit(&second);
    all.served[1].until("under way", |seen| seen.in_flight == 1);
    all.script.lock().unwrap().fail_flush = Some((0, libc::ENOSPC));
    let first = all.guests[0].flush();
    assert_eq!(all.guests[0].ask(&first), Status::ERROR);
    all.script.lock().unwrap().hold_queue = None;
    all.served[1].wake();
    assert_eq!(all.guests[1].answer().status, Status::ERROR);
}

#[test]
fn a_flush_is_not_answered_before_the_medium_has_flushed() {
    let scene = Scene::new();
    let (disk, serving) = disk(1, Rules::new());
    let mut all = queues(&scene, 1, serving, &disk);
    all.script.lock().unwrap().hold_flushes = true;
    let guest = &mut all.guests[0];
    let page = guest.segments(0, 1);
    let (write, flush) = (guest.write(0, &page), guest.flush());
    guest.push(&flush);
    guest.push(&write);
    guest.publish();
    assert_eq!(guest.answer().id, write.id, "a write does not wait for a flush");
    assert!(guest.front.take_response().unwrap().is_none());
    all.script.lock().unwrap().hold_flushes = false;
    all.served[0].wake();
    assert_eq!(guest.answer().id, flush.id);
}

#[test]
fn a_flush_with_data_writes_after_it_flushed_and_not_if_that_failed() {
    let scene = Scene::new();
    let (disk, serving) = disk(1, Rules::new());
    let mut all = queues(&scene, 1, serving, &disk);
    let request = flush_with_data(&mut all.guests[0], 8);
    assert_eq!(all.guests[0].ask(&request), Status::OKAY);
    let steps = [(0, Operation::Flush), (0, Operation::Write { offset: 4096 })];
    assert_eq!(all.script.lock().unwrap().ended, steps);
    all.script.lock().unwrap().fail_flush = Some((0, libc::EIO));
    let request = flush_with_data(&mut all.guests[0], 8);
    assert_eq!(all.guests[0].ask(&request), Status::ERROR);
    assert_eq!(all.script.lock().unwrap().ended.len(), 3, "no write after a failed flush");
}

#[test]
fn a_barrier_that_cannot_be_made_stable_is_not_answered_with_success() {
    let scene = Scene::new();
    let (disk, serving) = disk(1, Rules::new());
    let mut all = queues(&scene, 1, serving, &disk);
    let guest = &mut all.guests[0];
    let page = guest.segments(0, 1);
    let barrier = guest.barrier(8, &page);
    assert_eq!(guest.ask(&barrier), Status::OKAY);
    let write = Operation::Write { offset: 4096 };
    let steps = [(0, Operation::Flush), (0, write), (0, Operation::Flush)];
    assert_eq!(all.script.lock().unwrap().ended, steps);
    all.script.lock().unwrap().fail_transfer = Some(libc::EIO);
    let barrier = guest.barrier(8, &page);
    assert_eq!(guest.ask(&barrier), Status::ERROR);
    // The gate it had shut is open again.
    all.script.lock().unwrap().fail_transfer = None;
    let read = guest.read(8, &page);
    assert_eq!(guest.ask(&read), Status::OKAY);
}

/// What the guest asks for, and when the engine is let go on.
#[derive(Clone, Copy, Debug)]
enum Move {
    Write,
    Read,
    Flush,
    FlushWithData,
    Barrier { data: bool },
    Hold(bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => Just(Move::Write),
        2 => Just(Move::Read),
        1 => Just(Move::Flush),
        1 => Just(Move::FlushWithData),
        2 => any::<bool>().prop_map(|data| Move::Barrier { data }),
        2 => any::<bool>().prop_map(Move::Hold),
    ];
    proptest::collection::vec(one, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is asked in whatever order, what came before a barrier is over when the barrier
    /// begins, what came after begins when it is over, and every request is answered once.
    #[test]
    fn barriers_keep_their_place(moves in moves()) {
        let scene = Scene::new();
        let (disk, serving) = disk(4, Rules::new());
        let mut all = queues(&scene, 1, serving, &disk);
        let (guest, script) = (&mut all.guests[0], &all.script);
        let page = guest.segments(0, 1);
        // Each data request writes to a place of its own, by which the log names it.
        let mut asked = Vec::new();
        for (at, each) in moves.iter().enumerate() {
            let sector = at as u64 * 8;
            let request = match each {
                Move::Write => guest.write(sector, &page),
                Move::Read => guest.read(sector, &page),
                Move::Flush => guest.flush(),
                Move::FlushWithData => flush_with_data(guest, sector),
                Move::Barrier { data: true } => guest.barrier(sector, &page),
                Move::Barrier { data: false } => guest.barrier(0, &[]),
                Move::Hold(hold) => {
                    script.lock().unwrap().hold = *hold;
                    all.served[0].wake();
                    continue;
                }
            };
            guest.submit(&request);
            asked.push((request.id, sector * 512, *each));
        }
        script.lock().unwrap().hold = false;
        all.served[0].wake();
        let mut answered: Vec<_> = asked.iter().map(|_| {
            let answer = guest.answer();
            assert!(answer.status.is_okay());
            answer.id
        }).collect();
        answered.sort_unstable();
        prop_assert_eq!(answered, asked.iter().map(|(id, ..)| *id).collect::<Vec<_>>());

        let state = script.lock().unwrap();
        let begun = |offset| state.began.iter().position(|(_, operation)| match operation {
            Operation::Write { offset: at } | Operation::Read { offset: at } => *at == offset,
            _ => false,
        });
        for (place, (_, offset, barrier)) in asked.iter().enumerate() {
            if !matches!(barrier, Move::Barrier { data: true }) {
                continue;
            }
            let own = begun(*offset).unwrap();
            for (other, (_, offset, kind)) in asked.iter().enumerate() {
                let writes = matches!(
                    kind,
                    Move::Write | Move::FlushWithData | Move::Barrier { data: true }
                );
                if other < place && writes {
                    prop_assert!(begun(*offset).unwrap() < own, "{kind:?} before its barrier");
                } else if other > place && writes {
                    prop_assert!(begun(*offset).unwrap() > own, "{kind:?} after its barrier");
                }
            }
            // A flush stands directly on each side of what a barrier carries, save plain flushes.
            let flush = |at: usize| state.began.get(at).map(|(_, operation)| *operation);
            prop_assert_eq!(flush(own - 1), Some(Operation::Flush));
            prop_assert_eq!(flush(own + 1), Some(Operation::Flush));
        }
    }
}
