//! Backends that lie.

use blkfront::device::Phase;
use blkfront::{Config, Ending, IoError, Request};
use hypervisor::PAGE_SIZE;
use hypervisor::memory::{Access, Memory, Using};
use hypervisor::store::{Store, Transaction};
use hypervisor::testing::Machine;
use hypervisor::xenbus::State;
use hypervisor::{DomId, GrantRef};
use ring::wire::blkif::{Response, Status};

use crate::backend::{Backend, Features, bytes, connect, disk, run, scene, zeroes};

const MIB: usize = 1 << 20;

/// Puts three requests on the ring, answers the first by `lie`, and checks that the connection ends
/// with a fault that says `what`.
fn expect_fault(what: &str, lie: impl FnOnce(&mut Backend, Vec<crate::backend::Taken>)) {
    let (_machine, guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    for tag in 0..3 {
        disk.queues()[0].submit(Request::read(0, zeroes(512), tag)).unwrap();
    }
    disk.poll().unwrap();
    let taken = backend.take();
    assert_eq!(taken.len(), 3);
    lie(&mut backend, taken);
    disk.poll().unwrap();
    let Some(Ending::Fault(fault)) = disk.ending() else {
        panic!("{what}: {:?}", disk.ending());
    };
    assert!(fault.to_string().contains(what), "{fault}");
    assert_eq!(fault.peer, backend.domain.id().into());
    let mut ended = 0;
    while let Some(completion) = disk.queues()[0].complete() {
        ended += 1;
        if completion.request.tag != 0 {
            assert_eq!(completion.result, Err(IoError::Untrusted));
        }
    }
    assert_eq!(ended, 3, "every request ends");
    assert!(disk.queues()[0].submit(Request::read(0, zeroes(512), 0)).is_err());
    assert_eq!(disk.phase(), Phase::Closed);
    assert_eq!(backend.front_state(), State::Closed);
    let error = guest.read(Transaction::NONE, "device/vbd/51712/error").unwrap();
    assert!(String::from_utf8(error).unwrap().contains(what));
}

fn abandon(taken: impl IntoIterator<Item = crate::backend::Taken>) {
    taken.into_iter().for_each(|taken| taken.slot.abandon());
}

#[test]
fn ids_that_were_never_given_out() {
    for change in [1_u64 << 32, 1 << 63, 5, u64::MAX] {
        expect_fault("no request", |backend, taken| {
            let mut taken = taken.into_iter();
            let first = taken.next().unwrap();
            let response =
                Response { id: first.request.id ^ change, operation: 0, status: Status::OKAY };
            backend.answer(0, first.slot, &response);
            abandon(taken);
        });
    }
}

#[test]
fn one_request_answered_twice() {
    expect_fault("no request", |backend, taken| {
        let mut taken = taken.into_iter();
        let (first, second) = (taken.next().unwrap(), taken.next().unwrap());
        let response = Response::to(&first.request, Status::OKAY);
        backend.answer(0, first.slot, &response);
        backend.answer(0, second.slot, &response);
        abandon(taken);
    });
}

#[test]
fn another_operation_or_an_unknown_status() {
    expect_fault("another operation", |backend, taken| {
        let mut taken = taken.into_iter();
        let first = taken.next().unwrap();
        let response = Response { operation: 1, ..Response::to(&first.request, Status::OKAY) };
        backend.answer(0, first.slot, &response);
        abandon(taken);
    });
    expect_fault("unknown status", |backend, taken| {
        let mut taken = taken.into_iter();
        let first = taken.next().unwrap();
        backend.answer(0, first.slot, &Response::to(&first.request, Status(1)));
        abandon(taken);
    });
}

#[test]
fn indexes_that_cannot_be() {
    for producer in [4_u32, 1000, u32::MAX, 1 << 31] {
        expect_fault("response_producer", |backend, taken| {
            abandon(taken);
            let gref = GrantRef(key(backend, "ring-ref0"));
            let ring = backend.domain.map(backend.seat.peer, &[gref], Access::ReadWrite).unwrap();
            // rsp_prod, io/ring.h
            ring.write_at(8, &producer.to_ne_bytes()).unwrap();
        });
    }
}

fn key(backend: &Backend, key: &str) -> u32 {
    let path = format!("{}/{key}", backend.seat.opposite);
    String::from_utf8(backend.domain.read(Transaction::NONE, &path).unwrap())
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn what_a_backend_writes_into_request_slots_reaches_nobody() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    backend.disk.copy_from_slice(&bytes(MIB, 0));
    disk.queues()[0].submit(Request::read(4096, zeroes(4096), 1)).unwrap();
    disk.poll().unwrap();
    let mut taken = backend.take();
    let gref = GrantRef(key(&backend, "ring-ref0"));
    let ring = backend.domain.map(backend.seat.peer, &[gref], Access::ReadWrite).unwrap();
    ring.fill(64, PAGE_SIZE - 64, 0xff).unwrap();
    backend.serve(taken.pop().unwrap());
    disk.poll().unwrap();
    let read = disk.queues()[0].complete().unwrap();
    assert_eq!(read.result, Ok(()));
    assert_eq!(**read.request.buffer, bytes(MIB, 0)[4096..8192]);
}

#[test]
fn failures_are_reported_and_not_believed_to_be_data() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    for (status, error) in
        [(Status::ERROR, IoError::Failed), (Status::NOT_SUPPORTED, IoError::Unsupported)]
    {
        disk.queues()[0].submit(Request::read(0, zeroes(512), 1)).unwrap();
        disk.poll().unwrap();
        let taken = backend.take().pop().unwrap();
        backend.answer(0, taken.slot, &Response::to(&taken.request, status));
        disk.poll().unwrap();
        assert_eq!(disk.queues()[0].complete().unwrap().result, Err(error));
    }
    assert_eq!(disk.phase(), Phase::Connected);
}

#[test]
fn pages_that_are_not_let_go_are_never_used_again() {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let before = guest.pages_in_use();
    let mut backend = Backend::new(&machine, "backend", &guest, MIB, Features::default());
    backend.hoard = true;
    let mut first = disk(&guest, Config::default());
    connect(&mut first, &mut backend);
    let _ = run(&mut first, &mut backend, Request::write(0, bytes(3 * 4096, 1), 1));
    first.close().unwrap();
    backend.drop_rings();
    backend.say(&[], State::Closed);
    first.poll().unwrap();
    assert_eq!(first.phase(), Phase::Closed);
    let held = first.reclaim();
    assert_eq!(held, 3, "the pages that the backend keeps mapped");
    assert!(guest.pages_in_use() > before, "memory with busy pages is not freed");
    backend.let_go();
    assert_eq!(first.reclaim(), 0);
    assert_eq!(guest.pages_in_use(), before);
}

#[test]
fn nonsense_in_the_store_ends_the_device_with_the_value() {
    for (name, value) in [
        ("sectors", "-1"),
        ("sectors", "18446744073709551616"),
        ("sectors", "18446744073709551615"),
        ("sectors", ""),
        ("sector-size", "0"),
        ("sector-size", "513"),
        ("sector-size", "1000"),
        ("sector-size", "65536"),
        ("info", "x"),
        ("feature-flush-cache", "on"),
        ("discard-granularity", "0"),
        ("discard-granularity", "100"),
        ("discard-alignment", "3"),
        ("physical-sector-size", "700"),
    ] {
        let machine = Machine::new();
        let guest = machine.domain("guest");
        let mut backend = Backend::new(&machine, "backend", &guest, MIB, Features::default());
        let mut disk = disk(&guest, Config::default());
        disk.poll().unwrap();
        assert!(backend.connect());
        backend.say(&[(name, value.to_owned())], State::Connected);
        disk.poll().unwrap();
        let Some(Ending::Fault(fault)) = disk.ending() else {
            panic!("{name}={value}: {:?}", disk.ending());
        };
        assert!(fault.to_string().contains(name), "{fault}");
        assert_eq!(disk.phase(), Phase::Closed);
    }
    for (name, value) in [
        ("multi-queue-max-queues", "0"),
        ("multi-queue-max-queues", "99999999999"),
        ("max-ring-page-order", "32"),
        ("feature-max-indirect-segments", "many"),
    ] {
        let machine = Machine::new();
        let guest = machine.domain("guest");
        let backend = Backend::new(&machine, "backend", &guest, MIB, Features::default());
        backend.say(&[(name, value.to_owned())], State::InitWait);
        let mut disk = disk(&guest, Config::default());
        disk.poll().unwrap();
        assert!(matches!(disk.ending(), Some(Ending::Fault(_))), "{name}={value}");
    }
}

#[test]
fn a_backend_that_is_nobody_is_waited_for() {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let path = |key: &str| format!("device/vbd/51712/{key}");
    let write = |key: &str, value: &str| {
        guest.write(Transaction::NONE, &path(key), value.as_bytes()).unwrap();
    };
    let mut disk = disk(&guest, Config::default());
    for (backend, id) in [
        ("/local/domain/99/backend/vbd/1/51712", "99"),
        ("nonsense", "4"),
        ("", "1"),
        ("/local/domain/99/backend", "65535"),
        ("/local/domain/99/backend", "-4"),
    ] {
        write("backend", backend);
        write("backend-id", id);
        write("state", "1");
        // A path that the store refuses to watch is an error; none is a panic or a connection.
        let _ = disk.poll();
        assert_ne!(disk.phase(), Phase::Connected, "{backend} {id}");
    }
    assert!(DomId::new(99).is_some());
}
