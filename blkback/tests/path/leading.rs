//! How a queue is led: told to drain, pause or stop, held to limits, and by engines that fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blkback::engine::memory::Disk;
use blkback::policy::acquire::Reach;
use blkback::queue::{Command, Ended, Serving};
use blkback::throttle::Limits;
use hypervisor::HostError;
use hypervisor::memory::Revoked;
use ring::Waiting;
use ring::wire::blkif::Status;

use crate::queue::all;
use crate::scene::{Guest, PATIENCE, Scene, Served, T, disk};
use crate::script::{Script, Scripted};

fn scripted(
    scene: &Scene,
    guest: &Guest,
    serving: Serving,
    disk: &Arc<Disk>,
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
    let refused = HostError::new("make an engine", libc::ENOMEM);
    let error = refused.clone();
    let served = scene.serve(&guest, &Arc::new(serving), true, move || {
        let engine: Result<Scripted<T>, _> = Err(error);
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
