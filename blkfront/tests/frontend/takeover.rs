//! A disk that somebody else of the same domain used before, at backends that do not come round by
//! themselves.

use blkfront::device::Phase;
use blkfront::{Config, Request};
use hypervisor::embedded::Domain;
use hypervisor::store::{Store as _, Transaction, Watches as _};
use hypervisor::testing::Machine;
use hypervisor::xenbus::State;

use crate::backend::{Backend, DIRECTORY, Features, TestDisk, bytes, disk, run, zeroes};

const MIB: usize = 1 << 20;

/// One step of a backend as Linux has it: it lets go of a frontend only when that is Closed, offers
/// again only when a frontend begins anew after that, and says about persistent grants only then.
fn as_linux(backend: &mut Backend) {
    let own = backend.seat.own_state(&backend.domain, Transaction::NONE).unwrap();
    match (own, backend.front_state()) {
        (State::Connected, State::Closing) => backend.say(&[], State::Closing),
        (State::Connected | State::Closing, State::Closed) => {
            backend.drop_rings();
            backend.say(&[], State::Closed);
        }
        (State::Closed, State::Initialising) => backend.offer(),
        (State::InitWait, State::Initialised) => {
            let key = format!("{}/feature-persistent", backend.seat.own);
            backend.domain.write(Transaction::NONE, &key, b"1").unwrap();
            assert!(backend.connect());
        }
        _ => {
            backend.poll();
        }
    }
}

fn until(disk: &mut TestDisk, backend: &mut Backend, phase: Phase) {
    for _ in 0..30 {
        disk.poll().unwrap();
        as_linux(backend);
        if disk.phase() == phase {
            return;
        }
    }
    panic!("{:?} and never {phase:?}; frontend {}", disk.phase(), backend.front_state());
}

fn scene() -> (Machine, Domain, Backend) {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let features = Features { persistent: false, ..Features::default() };
    let backend = Backend::new(&machine, "backend", &guest, MIB, features);
    (machine, guest, backend)
}

#[test]
fn a_closed_disk_is_had_again() {
    let (_machine, guest, mut backend) = scene();
    for round in 0..3 {
        let mut disk = disk(&guest, Config::default());
        until(&mut disk, &mut backend, Phase::Connected);
        assert!(disk.device().offer().unwrap().persistent, "said when it connected");
        if round > 0 {
            let read = run(&mut disk, &mut backend, Request::read(0, zeroes(4096), 1));
            assert_eq!(*read.request.buffer, *bytes(4096, round - 1));
        }
        let _ = run(&mut disk, &mut backend, Request::write(0, bytes(4096, round), 2));
        disk.close().unwrap();
        until(&mut disk, &mut backend, Phase::Closed);
        as_linux(&mut backend);
    }
}

#[test]
fn so_is_one_whose_user_was_killed() {
    let (_machine, guest, mut backend) = scene();
    let mut killed = disk(&guest, Config::default());
    until(&mut killed, &mut backend, Phase::Connected);
    let _ = run(&mut killed, &mut backend, Request::write(0, bytes(4096, 7), 1));
    // It says nothing, and the backend holds on to its rings.
    drop(killed);
    // With a process its connection to the store ends, and so do its watches.
    for path in [DIRECTORY, &backend.seat.own] {
        guest.unwatch(path, "blkfront").unwrap();
    }
    assert_eq!(backend.front_state(), State::Connected);
    let mut disk = disk(&guest, Config::default());
    until(&mut disk, &mut backend, Phase::Connected);
    let read = run(&mut disk, &mut backend, Request::read(0, zeroes(4096), 1));
    assert_eq!(*read.request.buffer, *bytes(4096, 7));
}

#[test]
fn a_backend_that_turns_us_down_is_not_asked_again_and_again() {
    let (_machine, guest, mut backend) = scene();
    let mut disk = disk(&guest, Config::default());
    disk.poll().unwrap();
    assert_eq!(disk.phase(), Phase::Published);
    backend.say(&[], State::Closing);
    for _ in 0..5 {
        disk.poll().unwrap();
    }
    backend.say(&[], State::Closed);
    for _ in 0..5 {
        disk.poll().unwrap();
        assert_eq!(backend.front_state(), State::Closed);
    }
    // Where it changes its mind by itself, we are there.
    backend.offer();
    until(&mut disk, &mut backend, Phase::Connected);
}

/// A backend that goes on with the rings that it finds, and finds them gone, closes; by then we may not have
/// said yet that we are closed as well.
#[test]
fn a_backend_that_closes_before_we_parted_is_told_that_we_did() {
    let (_machine, guest, mut backend) = scene();
    let mut disk = disk(&guest, Config::default());
    until(&mut disk, &mut backend, Phase::Connected);
    let state = format!("{}/state", backend.seat.own);
    backend.domain.remove(Transaction::NONE, &state).unwrap();
    disk.poll().unwrap();
    assert_eq!(disk.phase(), Phase::Lost);
    assert_eq!(backend.front_state(), State::Connected);
    backend.domain.write(Transaction::NONE, &state, b"5").unwrap();
    disk.poll().unwrap();
    assert_eq!(backend.front_state(), State::Closed);
    until(&mut disk, &mut backend, Phase::Connected);
    let _ = run(&mut disk, &mut backend, Request::write(0, bytes(4096, 7), 1));
}
