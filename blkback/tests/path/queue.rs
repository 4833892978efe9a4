//! One queue from end to end: every operation, in every layout, however pages are reached.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::scene::{Guest, PATIENCE, Scene, Served, disk};
use crate::script::{Script, Scripted};
use blkback::policy::acquire::Reach;
use blkback::policy::polling::Waiting;
use blkback::queue::{Command, Ended, Serving};
use blkback::throttle::Limits;
use blkback::validate::Rules;
use hypervisor::PAGE_SIZE;
use hypervisor::memory::Revoked;
use ring::wire::blkif::{
    Kind, Layout, Native, Request, Segment, Status, X86_32, X86_64, operation,
};

const WAYS: [Reach; 5] = [
    Reach::Persistent { pages: Reach::PERSISTENT_PAGES },
    Reach::Persistent { pages: 3 },
    Reach::Map,
    Reach::Copy { pages: Reach::COPY_PAGES },
    Reach::Copy { pages: 0 },
];

fn all() -> Rules {
    let mut rules = Rules::new();
    (rules.discard, rules.secure_discard) = (true, true);
    rules
}

/// Writes and reads back through every kind of request.
fn round_trip<L: Layout>(reach: Reach, order: u32) {
    let scene = Scene::new();
    let mut guest: Guest<L> = scene.guest(order, 40);
    let (disk, mut serving) = disk(8, all());
    serving.reach = Some(reach);
    let serving = Arc::new(serving);
    let served = scene.serve_memory(&guest, &serving, false, &disk);

    // Eleven pages in one request, out and back in at other pages.
    (0..11).for_each(|page| guest.fill(page, page as u8));
    let out = guest.segments(0, 11);
    let write = guest.write(64, &out);
    assert_eq!(guest.ask(&write), Status::OKAY);
    let back_in = guest.segments(20, 11);
    let read = guest.read(64, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    (0..11).for_each(|page| assert_eq!(guest.bytes(page), guest.bytes(page + 20), "{page}"));

    // Parts of pages.
    let part = Segment { gref: guest.grefs[1], first: 2, last: 4 };
    let other = Segment { gref: guest.grefs[30], first: 5, last: 7 };
    let before = guest.bytes(30);
    let write = guest.write(1000, &[part]);
    assert_eq!(guest.ask(&write), Status::OKAY);
    let read = guest.read(1000, &[other]);
    assert_eq!(guest.ask(&read), Status::OKAY);
    let after = guest.bytes(30);
    assert_eq!(after[5 * 512..], guest.bytes(1)[2 * 512..5 * 512]);
    assert_eq!(after[..5 * 512], before[..5 * 512], "nothing else was touched");

    // Indirect, both ways.
    (0..16).for_each(|page| guest.fill(page, 100 + page as u8));
    let out: Vec<_> = (0..16).rev().flat_map(|page| guest.segments(page, 1)).collect();
    let write = guest.indirect(operation::WRITE, 4096, &out, 38);
    assert_eq!(guest.ask(&write), Status::OKAY);
    let back_in = guest.segments(16, 16);
    let read = guest.indirect(operation::READ, 4096, &back_in, 38);
    assert_eq!(guest.ask(&read), Status::OKAY);
    (0..16).for_each(|page| assert_eq!(guest.bytes(15 - page), guest.bytes(page + 16), "{page}"));

    // Flush, flush with data, barrier with and without, discard.
    let flush = guest.flush();
    assert_eq!(guest.ask(&flush), Status::OKAY);
    let mut with_data = guest.write(8, &out[..1]);
    let Kind::Write(data) = with_data.kind.clone() else { unreachable!() };
    (with_data.operation, with_data.kind) = (operation::FLUSH_DISKCACHE, Kind::Flush(data));
    assert_eq!(guest.ask(&with_data), Status::OKAY);
    let barrier = guest.barrier(16, &out[1..2]);
    assert_eq!(guest.ask(&barrier), Status::OKAY);
    let barrier = guest.barrier(0, &[]);
    assert_eq!(guest.ask(&barrier), Status::OKAY);
    let back_in = guest.segments(32, 2);
    let read = guest.read(8, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!((guest.bytes(32), guest.bytes(33)), (guest.bytes(15), guest.bytes(14)));
    for secure in [false, true] {
        let discard = guest.discard(8, 8, secure);
        assert_eq!(guest.ask(&discard), Status::OKAY);
    }
    let read = guest.read(8, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!(guest.bytes(32), [0; PAGE_SIZE], "discarded");
    assert_eq!(guest.bytes(33), guest.bytes(14));

    let seen = served.stats();
    assert_eq!((seen.reads, seen.writes, seen.flushes), (5, 3, 2));
    assert_eq!((seen.barriers, seen.discards, seen.errors()), (2, 2, 0));
    assert_eq!(seen.bytes_discarded, 2 * 4096);
    served.tell(Command::Drain);
    assert_eq!(served.ended(), Ended::Drained);
    // Nothing stays mapped behind a queue.
    for page in 0..40 {
        assert_eq!(guest.revoke(page), Revoked::Done, "page {page} with {reach:?}");
    }
}

#[test]
fn every_operation_in_every_layout_however_pages_are_reached() {
    for reach in WAYS {
        round_trip::<X86_64>(reach, 0);
        round_trip::<X86_32>(reach, 0);
        round_trip::<Native>(reach, 2);
    }
}

#[test]
fn a_request_of_256_segments_moves_a_mebibyte() {
    for reach in WAYS {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 513);
        let (disk, mut serving) = disk(4, all());
        serving.reach = Some(reach);
        let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
        (0..256).for_each(|page| guest.fill(page, page as u8));
        let out = guest.segments(0, 256);
        let write = guest.indirect(operation::WRITE, 8, &out, 512);
        assert_eq!(guest.ask(&write), Status::OKAY);
        let back_in = guest.segments(256, 256);
        let read = guest.indirect(operation::READ, 8, &back_in, 512);
        assert_eq!(guest.ask(&read), Status::OKAY);
        (0..256).for_each(|page| assert_eq!(guest.bytes(page), guest.bytes(page + 256)));
        let out = guest.segments(0, 257);
        let write = guest.indirect(operation::WRITE, 8, &out, 512);
        assert_eq!(guest.ask(&write), Status::ERROR);
        assert_eq!(served.stats().refused.get("segment_count"), Some(&1));
    }
}

#[test]
fn an_indirect_answer_names_the_operation_inside() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 2);
    let (disk, serving) = disk(1, all());
    let _served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    let one = guest.segments(0, 1);
    for inside in [operation::READ, operation::WRITE] {
        let request = guest.indirect(inside, 0, &one, 1);
        guest.submit(&request);
        assert_eq!(guest.answer().operation, inside);
    }
}

#[test]
fn sectors_of_4096_bytes_keep_units_of_512() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 4);
    let mut rules = all();
    rules.sector_size = 4096;
    let (disk, serving) = disk(1, rules);
    let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    guest.fill(0, 9);
    let whole = guest.segments(0, 1);
    let write = guest.write(2048 - 8, &whole);
    assert_eq!(guest.ask(&write), Status::OKAY, "the last sector");
    let write = guest.write(2048 - 4, &whole);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let write = guest.write(4, &whole);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let half = Segment { gref: guest.grefs[0], first: 0, last: 3 };
    let write = guest.write(8, &[half]);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let back_in = guest.segments(1, 1);
    let read = guest.read(2048 - 8, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!(guest.bytes(1), guest.bytes(0));
    let seen = served.stats();
    assert_eq!((seen.refused["misaligned"], seen.refused["past_end"]), (2, 1));
}

#[test]
fn what_a_disk_cannot_do_is_answered_as_the_header_says() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 2);
    let mut rules = Rules::new();
    rules.read_only = true;
    let (disk, serving) = disk(1, rules);
    let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    let one = guest.segments(0, 1);
    let write = guest.write(0, &one);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let barrier = guest.barrier(0, &one);
    assert_eq!(guest.ask(&barrier), Status::ERROR);
    let discard = guest.discard(0, 8, false);
    assert_eq!(guest.ask(&discard), Status::NOT_SUPPORTED);
    let read = guest.read(0, &one);
    assert_eq!(guest.ask(&read), Status::OKAY);
    let flush = guest.flush();
    assert_eq!(guest.ask(&flush), Status::OKAY);
    let mut unknown = guest.flush();
    (unknown.operation, unknown.kind) = (77, Kind::Unknown(77));
    guest.submit(&unknown);
    let answer = guest.answer();
    assert_eq!((answer.id, answer.operation), (unknown.id, 77));
    assert_eq!(answer.status, Status::NOT_SUPPORTED);
    let seen = served.stats();
    assert_eq!((seen.refused["read_only"], seen.refused["unknown_operation"]), (2, 1));
    assert_eq!(seen.refused["no_discard"], 1);
}

#[test]
fn a_disk_that_grows_is_larger_at_once() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, mut serving) = disk(2, all());
    *serving.sectors.get_mut() = 2048;
    let serving = Arc::new(serving);
    let _served = scene.serve_memory(&guest, &serving, true, &disk);
    let one = guest.segments(0, 1);
    let write = guest.write(2048, &one);
    assert_eq!(guest.ask(&write), Status::ERROR);
    serving.sectors.store(4096, Ordering::Relaxed);
    let write = guest.write(2048, &one);
    assert_eq!(guest.ask(&write), Status::OKAY);
    serving.sectors.store(1024, Ordering::Relaxed);
    let write = guest.write(1024, &one);
    assert_eq!(guest.ask(&write), Status::ERROR, "and smaller");
}

fn scripted(
    scene: &Scene,
    guest: &Guest,
    serving: Serving,
    disk: &Arc<blkback::engine::memory::Disk>,
    script: &Script,
) -> Served {
    let (disk, script) = (Arc::clone(disk), Arc::clone(script));
    scene.serve(guest, &Arc::new(serving), true, move || Ok(Scripted::new(disk, 0, script)))
}

#[test]
fn draining_answers_what_was_taken_and_takes_no_more() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, mut serving) = disk(1, all());
    // Two go at once, all others would wait for hours.
    serving.limits = Limits::new(None, Some(1));
    let script = Script::default();
    script.lock().unwrap().hold = true;
    let served = scripted(&scene, &guest, serving, &disk, &script);
    let one = guest.segments(0, 1);
    for _ in 0..8 {
        let write = guest.write(0, &one);
        guest.push(&write);
    }
    guest.publish();
    served.until("all taken", |seen| seen.in_flight == 8);
    served.tell(Command::Drain);
    let late = guest.write(0, &one);
    guest.submit(&late);
    script.lock().unwrap().hold = false;
    served.wake();
    for _ in 0..8 {
        let answer = guest.answer();
        assert!(answer.id != late.id && answer.status.is_okay());
    }
    assert_eq!(served.ended(), Ended::Drained);
    assert!(guest.front.take_response().unwrap().is_none(), "the late one is not answered");
}

#[test]
fn pausing_finishes_what_was_taken_and_goes_on_later() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, serving) = disk(1, all());
    let script = Script::default();
    script.lock().unwrap().hold = true;
    let served = scripted(&scene, &guest, serving, &disk, &script);
    let one = guest.segments(0, 1);
    let first = guest.write(0, &one);
    guest.submit(&first);
    served.until("taken", |seen| seen.in_flight == 1);
    served.tell(Command::Pause);
    script.lock().unwrap().hold = false;
    served.wake();
    assert_eq!(guest.answer().id, first.id);
    let second = guest.write(0, &one);
    guest.submit(&second);
    assert!(guest.answer_before(Instant::now() + Duration::from_millis(50)).is_none());
    served.tell(Command::Run);
    assert_eq!(guest.answer().id, second.id);
}

#[test]
fn stopping_leaves_no_page_mapped_and_answers_nothing() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, serving) = disk(1, all());
    let script = Script::default();
    script.lock().unwrap().hold = true;
    let served = scripted(&scene, &guest, serving, &disk, &script);
    let one = guest.segments(0, 1);
    let write = guest.write(0, &one);
    guest.submit(&write);
    served.until("taken", |seen| seen.in_flight == 1);
    assert_eq!(guest.revoke(0), Revoked::Busy);
    served.tell(Command::Stop);
    assert_eq!(served.ended(), Ended::Stopped);
    assert_eq!(guest.revoke(0), Revoked::Done);
    assert!(guest.front.take_response().unwrap().is_none());
    assert_eq!(script.lock().unwrap().dropped, 1);
}

#[test]
fn an_engine_that_breaks_ends_its_queue_with_every_request_answered() {
    for how in ["kick", "finished", "panic"] {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 1);
        let (disk, mut serving) = disk(1, all());
        serving.limits = Limits::new(Some(6), None);
        let script = Script::default();
        script.lock().unwrap().hold = true;
        let served = scripted(&scene, &guest, serving, &disk, &script);
        let one = guest.segments(0, 1);
        let before = guest.write(0, &one);
        guest.submit(&before);
        served.until("taken", |seen| seen.in_flight == 1);
        {
            let mut state = script.lock().unwrap();
            match how {
                "kick" => state.break_kick = Some(libc::EBADF),
                "finished" => state.break_finished = Some(libc::EBADF),
                _ => state.panic = true,
            }
        }
        for _ in 0..8 {
            let write = guest.write(0, &one);
            guest.push(&write);
        }
        guest.publish();
        let Ended::Failed(error) = served.ended() else { panic!("not failed") };
        assert!(how == "panic" || error.errno == libc::EBADF, "{error}");
        // Whatever was taken is answered; the rest was never seen.
        assert_eq!(guest.answer().status, Status::ERROR);
        while let Some(answer) = guest.front.take_response().unwrap() {
            assert_eq!(answer.status, Status::ERROR);
        }
        assert_eq!(script.lock().unwrap().dropped, 1, "{how}");
        assert_eq!(guest.revoke(0), Revoked::Done, "{how}");
    }
}

#[test]
fn an_engine_without_room_is_waited_for() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, serving) = disk(1, all());
    let script = Script::default();
    script.lock().unwrap().room = 1;
    let served = scripted(&scene, &guest, serving, &disk, &script);
    let one = guest.segments(0, 1);
    for _ in 0..32 {
        let write = guest.write(0, &one);
        guest.push(&write);
    }
    guest.publish();
    let mut ids: Vec<_> = (0..32).map(|_| guest.answer().id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=32).collect::<Vec<_>>());
    drop(served);
}

#[test]
fn a_medium_that_fails_or_moves_too_little_is_an_error_to_the_guest() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, serving) = disk(1, all());
    let script = Script::default();
    let served = scripted(&scene, &guest, serving, &disk, &script);
    let one = guest.segments(0, 1);
    script.lock().unwrap().fail_transfer = Some(libc::EIO);
    let read = guest.read(0, &one);
    assert_eq!(guest.ask(&read), Status::ERROR);
    script.lock().unwrap().fail_transfer = Some(libc::EOPNOTSUPP);
    let discard = guest.discard(0, 8, false);
    assert_eq!(guest.ask(&discard), Status::NOT_SUPPORTED);
    let read = guest.read(0, &one);
    assert_eq!(guest.ask(&read), Status::ERROR, "reading is never 'not supported'");
    script.lock().unwrap().fail_transfer = None;
    script.lock().unwrap().short = true;
    let read = guest.read(0, &one);
    assert_eq!(guest.ask(&read), Status::ERROR);
    script.lock().unwrap().short = false;
    let read = guest.read(0, &one);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!(served.stats().medium_errors, 4);
}

#[test]
fn an_engine_that_cannot_be_made_ends_the_queue() {
    let scene = Scene::new();
    let guest: Guest = scene.guest(0, 1);
    let (disk, serving) = disk(1, all());
    let refused = hypervisor::HostError::new("make an engine", libc::ENOMEM);
    let error = refused.clone();
    let served = scene.serve(&guest, &Arc::new(serving), true, move || {
        let engine: Result<Scripted<crate::scene::T>, _> = Err(error);
        engine
    });
    drop(disk);
    assert_eq!(served.ended(), Ended::Failed(refused));
}

#[test]
fn a_held_request_waits_alone() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, mut serving) = disk(1, all());
    serving.limits = Limits::new(None, Some(1));
    let serving = Arc::new(serving);
    let served = scene.serve_memory(&guest, &serving, true, &disk);
    let one = guest.segments(0, 1);
    let first = guest.write(0, &one);
    assert_eq!(guest.ask(&first), Status::OKAY, "any limit lets a request through");
    let second = guest.write(0, &one);
    guest.submit(&second);
    served.until("held", |seen| seen.held == 1);
    let flush = guest.flush();
    assert_eq!(guest.ask(&flush), Status::OKAY, "a flush is not limited");
    assert!(guest.front.take_response().unwrap().is_none());
    serving.limits.set(None, None);
    served.wake();
    assert_eq!(guest.answer().id, second.id);
}

#[test]
fn a_limit_is_kept_to() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, mut serving) = disk(1, all());
    serving.limits = Limits::new(Some(200), None);
    let _served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    let one = guest.segments(0, 1);
    let began = Instant::now();
    for _ in 0..100 {
        let read = guest.read(0, &one);
        assert_eq!(guest.ask(&read), Status::OKAY);
    }
    // A burst of 20 and one go at once, the other 79 take 5 ms each; never less, whatever the
    // machine does meanwhile.
    assert!(began.elapsed() >= Duration::from_millis(390), "{:?}", began.elapsed());
}

#[test]
fn pages_stay_mapped_for_a_frontend_that_reuses_them_and_for_no_other() {
    for persistent in [true, false] {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 4);
        let (disk, serving) = disk(1, all());
        let served = scene.serve_memory(&guest, &Arc::new(serving), persistent, &disk);
        let all = guest.segments(0, 3);
        let write = guest.write(0, &all);
        assert_eq!(guest.ask(&write), Status::OKAY);
        let mapped = if persistent { Revoked::Busy } else { Revoked::Done };
        assert_eq!(guest.revoke(0), mapped);
        assert_eq!(guest.revoke(3), Revoked::Done);
        let pages = if persistent { 3 } else { 0 };
        served.until("counted", |seen| seen.turns > 0 && seen.mapped_pages == pages);
    }
}

#[test]
fn an_idle_queue_sleeps() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, serving) = disk(1, all());
    let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    let one = guest.segments(0, 1);
    for _ in 0..50 {
        let read = guest.read(0, &one);
        assert_eq!(guest.ask(&read), Status::OKAY);
    }
    // Once it sleeps, nothing wakes it: the count of sleeps stands still. Adaptive polling ends
    // after some hundred microseconds; a busy machine only makes that later.
    let began = Instant::now();
    loop {
        let before = served.stats().sleeps;
        std::thread::sleep(Duration::from_millis(100));
        if served.stats().sleeps == before && before > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "never asleep");
    }
    let read = guest.read(0, &one);
    assert_eq!(guest.ask(&read), Status::OKAY);
}

#[test]
fn every_way_of_waiting_serves() {
    let adaptive = Waiting::Adaptive { most: Duration::from_micros(50) };
    for waiting in [Waiting::Sleep, adaptive, Waiting::Spin] {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(1, 1);
        let (disk, mut serving) = disk(1, all());
        serving.waiting = waiting;
        let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
        let one = guest.segments(0, 1);
        for _ in 0..200 {
            for _ in 0..guest.front.free() {
                let read = guest.read(0, &one);
                guest.push(&read);
            }
            guest.publish();
            while guest.front.outstanding() > 0 {
                assert!(guest.answer().status.is_okay());
            }
        }
        served.tell(Command::Drain);
        assert_eq!(served.ended(), Ended::Drained, "{waiting:?}");
    }
}

#[test]
fn two_disks_in_one_process_know_nothing_of_each_other() {
    let scene = Scene::new();
    let (mut one, mut two): (Guest, Guest) = (scene.guest(0, 2), scene.guest(0, 2));
    let ((first, serving), (second, other)) = (disk(1, all()), disk(1, all()));
    let _a = scene.serve_memory(&one, &Arc::new(serving), true, &first);
    let _b = scene.serve_memory(&two, &Arc::new(other), true, &second);
    for (guest, seed) in [(&mut one, 1), (&mut two, 2)] {
        guest.fill(0, seed);
        let page = guest.segments(0, 1);
        let write = guest.write(0, &page);
        assert_eq!(guest.ask(&write), Status::OKAY);
    }
    for guest in [&mut one, &mut two] {
        let page = guest.segments(1, 1);
        let read: Request = guest.read(0, &page);
        assert_eq!(guest.ask(&read), Status::OKAY);
        assert_eq!(guest.bytes(0), guest.bytes(1));
    }
}

#[test]
fn pages_that_stay_are_known_to_the_engine_and_forgotten_before_they_go() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 8);
    let (disk, mut serving) = disk(1, all());
    serving.reach = Some(Reach::Persistent { pages: 4 });
    let script = Script::default();
    script.lock().unwrap().registers = true;
    let served = scripted(&scene, &guest, serving, &disk, &script);
    // The script checks that what names a buffer lies in it.
    for round in 0..6 {
        for page in 0..4 {
            guest.fill(page, round + page as u8);
            let one = guest.segments(page, 1);
            let write = guest.write(page as u64 * 8, &one);
            assert_eq!(guest.ask(&write), Status::OKAY);
        }
    }
    {
        let state = script.lock().unwrap();
        assert_eq!(state.registered.len(), 4);
        // Neither the first use, which maps the page, nor the second, which registers it.
        assert_eq!(state.named, 4 * 4);
    }
    // Other pages push them out.
    for _ in 0..3 {
        for page in 4..8 {
            let one = guest.segments(page, 1);
            let read = guest.read((page as u64 - 4) * 8, &one);
            assert_eq!(guest.ask(&read), Status::OKAY);
            assert_eq!(guest.bytes(page), guest.bytes(page - 4));
        }
    }
    assert_eq!(script.lock().unwrap().registered.len(), 4);
    (0..4).for_each(|page| assert_eq!(guest.revoke(page), Revoked::Done));
    (4..8).for_each(|page| assert_eq!(guest.revoke(page), Revoked::Busy));
    drop(served);
}

#[test]
fn an_idle_guest_gets_its_pages_back() {
    for reach in [Reach::Persistent { pages: 64 }, Reach::Copy { pages: 64 }] {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 2);
        let (disk, mut serving) = disk(1, all());
        (serving.reach, serving.idle) = (Some(reach), Duration::from_millis(5));
        let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
        for _ in 0..3 {
            let pages = guest.segments(0, 2);
            let write = guest.write(0, &pages);
            assert_eq!(guest.ask(&write), Status::OKAY);
        }
        let began = Instant::now();
        for page in 0..2 {
            while guest.revoke(page) == Revoked::Busy {
                assert!(began.elapsed() < PATIENCE, "never unmapped");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        served.until("told", |seen| seen.mapped_pages == 0);
    }
}
