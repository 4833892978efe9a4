//! Backends that go and come back.

use blkfront::device::Phase;
use blkfront::{Config, Ending, IoError, Request};
use hypervisor::testing::Machine;
use hypervisor::xenbus::State;

use crate::backend::{
    Backend, Buffer, Features, TestDisk, bytes, connect, disk, run, scene, zeroes,
};

const MIB: usize = 1 << 20;

fn finish(
    disk: &mut TestDisk,
    backend: &mut Backend,
    count: usize,
) -> Vec<blkfront::Completion<Buffer>> {
    let mut done = Vec::new();
    for _ in 0..1000 {
        disk.poll().unwrap();
        backend.poll();
        while let Some(completion) = disk.queues()[0].complete() {
            done.push(completion);
        }
        if done.len() == count {
            return done;
        }
    }
    panic!("{} of {count} requests ended", done.len());
}

/// Puts eight writes on the ring, of which the backend takes all, does five and answers two.
fn interrupt(disk: &mut TestDisk, backend: &mut Backend) {
    for tag in 0..8_u64 {
        let request = Request::write(tag * 65536, bytes(65536, tag as u8), tag);
        disk.queues()[0].submit(request).unwrap();
    }
    disk.poll().unwrap();
    let mut taken = backend.take().into_iter();
    for _ in 0..2 {
        backend.serve(taken.next().unwrap());
    }
    for _ in 0..3 {
        let half = taken.next().unwrap();
        backend.execute(&half.request);
        half.slot.abandon();
    }
    taken.for_each(|rest| rest.slot.abandon());
    disk.poll().unwrap();
}

fn check(disk: &mut TestDisk, backend: &mut Backend, already: usize) {
    let done = finish(disk, backend, 8 - already);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    for tag in 0..8 {
        let at = tag * 65536;
        assert_eq!(backend.disk[at..at + 65536], **bytes(65536, tag as u8), "write {tag}");
    }
}

#[test]
fn a_backend_that_asks_for_a_new_connection_gets_what_was_in_flight() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    interrupt(&mut disk, &mut backend);
    backend.drop_rings();
    backend.offer();
    connect_again(&mut disk, &mut backend);
    check(&mut disk, &mut backend, 0);
}

fn connect_again(disk: &mut TestDisk, backend: &mut Backend) {
    for _ in 0..20 {
        disk.poll().unwrap();
        if backend.queues() == 0 {
            backend.connect();
        }
        if backend.queues() > 0 && disk.phase() == Phase::Connected {
            return;
        }
    }
    panic!("not connected again: {:?} {:?}", disk.phase(), disk.ending());
}

#[test]
fn a_backend_that_died_is_waited_for_and_its_successor_is_another_domain() {
    let (machine, guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    interrupt(&mut disk, &mut backend);
    let Backend { domain, disk: image, .. } = backend;
    domain.leave();
    drop(domain);
    // The store learns of the death from the broker, which is another thread.
    for _ in 0..3000 {
        disk.poll().unwrap();
        if disk.phase() == Phase::Lost {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(disk.phase(), Phase::Lost);
    // Requests are taken while nobody is there.
    disk.queues()[0].submit(Request::read(0, zeroes(512), 99)).unwrap();
    let features = Features { ring_order: 0, indirect: 0, ..Features::default() };
    let mut backend = Backend::new(&machine, "successor", &guest, MIB, features);
    backend.disk = image;
    connect_again(&mut disk, &mut backend);
    let done = finish(&mut disk, &mut backend, 9);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    for tag in 0..8 {
        let at = tag * 65536;
        assert_eq!(backend.disk[at..at + 65536], **bytes(65536, tag as u8), "write {tag}");
    }
}

#[test]
fn what_was_in_flight_goes_out_first_and_in_order() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    for tag in 0..20_u64 {
        disk.queues()[0].submit(Request::write(tag * 512, bytes(512, 1), tag)).unwrap();
    }
    disk.poll().unwrap();
    backend.take().into_iter().for_each(|taken| taken.slot.abandon());
    backend.drop_rings();
    backend.offer();
    disk.poll().unwrap();
    disk.queues()[0].submit(Request::write(20 * 512, bytes(512, 1), 20)).unwrap();
    connect_again(&mut disk, &mut backend);
    finish(&mut disk, &mut backend, 21);
    let order: Vec<u64> = backend.log.iter().map(|(_, sector, _)| *sector).collect();
    assert_eq!(order, (0..21).collect::<Vec<u64>>());
    assert_eq!(disk.queues()[0].counters().interrupted, 20);
}

#[test]
fn a_backend_that_goes_again_and_again_loses_nothing() {
    let (_machine, guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    let mut pages = Vec::new();
    for round in 0..10_u8 {
        for tag in 0..8_u64 {
            let buffer = bytes(65536, round.wrapping_add(tag as u8));
            disk.queues()[0].submit(Request::write(tag * 65536, buffer, tag)).unwrap();
        }
        for _ in 0..3 {
            disk.poll().unwrap();
            let mut taken = backend.take().into_iter();
            if let Some(first) = taken.next() {
                backend.serve(first);
            }
            taken.for_each(|rest| rest.slot.abandon());
            backend.drop_rings();
            backend.offer();
            connect_again(&mut disk, &mut backend);
        }
        let done = finish(&mut disk, &mut backend, 8);
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        for tag in 0..8 {
            let want = bytes(65536, round.wrapping_add(tag as u8));
            assert_eq!(backend.disk[tag * 65536..(tag + 1) * 65536], **want);
        }
        disk.reclaim();
        pages.push(guest.pages_in_use());
    }
    assert_eq!(pages.first(), pages.last(), "no page is lost: {pages:?}");
}

#[test]
fn a_disk_that_is_taken_away_ends_its_requests() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    disk.queues()[0].submit(Request::read(0, zeroes(512), 1)).unwrap();
    disk.poll().unwrap();
    backend.take().into_iter().for_each(|taken| taken.slot.abandon());
    backend.say(&[("online", "0".to_owned())], State::Closing);
    disk.poll().unwrap();
    assert_eq!(disk.ending(), Some(&Ending::Detached));
    assert_eq!(backend.front_state(), State::Closed);
    let ended = disk.queues()[0].complete().unwrap();
    assert_eq!(ended.result, Err(IoError::Detached));
    assert_eq!(ended.request.buffer.len(), 512);
}

#[test]
fn a_disk_that_closes_but_stays_online_comes_back() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    interrupt(&mut disk, &mut backend);
    backend.say(&[], State::Closing);
    disk.poll().unwrap();
    assert_eq!(backend.front_state(), State::Closed);
    backend.drop_rings();
    backend.say(&[], State::Closed);
    disk.poll().unwrap();
    backend.offer();
    connect_again(&mut disk, &mut backend);
    check(&mut disk, &mut backend, 0);
}

#[test]
fn a_successor_that_cannot_go_on_is_told_from_one_that_can() {
    for (features, what) in [
        (Features { sector_size: 4096, ..Features::default() }, "sectors"),
        (Features { info: 4, ..Features::default() }, "read"),
        (Features { queues: 1, ..Features::default() }, "queues"),
    ] {
        let mut config = Config::default();
        config.queues = 2;
        let (_machine, _guest, mut disk, mut backend) = scene(MIB, Features::default(), config);
        backend.drop_rings();
        backend.features = features;
        backend.offer();
        for _ in 0..5 {
            disk.poll().unwrap();
            backend.connect();
        }
        let ending = disk.ending().expect("it is over").to_string();
        assert!(ending.contains(what), "{ending}");
    }
}

#[test]
fn a_disk_that_comes_late_is_found() {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let mut late = disk(&guest, Config::default());
    late.poll().unwrap();
    assert_eq!(late.phase(), Phase::Waiting);
    let mut backend = Backend::new(&machine, "backend", &guest, MIB, Features::default());
    connect(&mut late, &mut backend);
    assert_eq!(run(&mut late, &mut backend, Request::flush(zeroes(0), 0)).result, Ok(()));
}

#[test]
fn a_death_at_any_moment_is_no_lie() {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let mut disk = disk(&guest, Config::default());
    for round in 0..30 {
        let name = format!("backend-{round}");
        let mut backend = Backend::new(&machine, &name, &guest, MIB, Features::default());
        connect_again(&mut disk, &mut backend);
        let Backend { domain, .. } = backend;
        let killer = std::thread::spawn(move || domain.leave());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while disk.phase() == Phase::Connected && std::time::Instant::now() < deadline {
            disk.poll().unwrap();
        }
        killer.join().unwrap();
        assert_eq!(disk.phase(), Phase::Lost, "round {round}: {:?}", disk.ending());
    }
}
