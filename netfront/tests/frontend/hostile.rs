//! Backends that lie.

use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory;
use hypervisor::store::{Store, Transaction};
use hypervisor::testing::Machine;
use hypervisor::xenbus::State;
use netfront::{Config, Ending, Interface, Multicast, Offload, Phase};
use ring::wire::netif::extra::{Extra, Gso, Kind};
use ring::wire::netif::rx::{Flags, Request, Response};
use ring::wire::netif::{Status, rx, tx};

use crate::backend::{
    Answer, Backend, DIRECTORY, Features, TestInterface, bytes, connect, receive, scene,
};

/// Checks that the device ended with a fault of the backend's that says `what`.
fn ended(interface: &mut TestInterface, backend: &Backend, what: &str) {
    let Some(Ending::Fault(fault)) = interface.ending() else {
        panic!("{what}: {:?}", interface.ending());
    };
    assert!(fault.to_string().contains(what), "{what}: {fault}");
    assert_eq!(fault.peer, backend.domain.id().into());
    assert_eq!(interface.phase(), Phase::Closed);
    assert_eq!(backend.front_state(), State::Closed);
    let error = backend.domain.read(Transaction::NONE, &format!("{}/error", backend.seat.opposite));
    assert!(String::from_utf8(error.unwrap()).unwrap().contains(what));
    for queue in interface.queues() {
        assert!(queue.send(&[&bytes(60, 0)], Offload::default()).is_err());
        assert!(queue.receive().is_none());
    }
}

/// Sends three packets of two pages, answers as `lie` does, and expects the end.
fn tx_fault(what: &str, lie: impl FnOnce(&mut Backend)) {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let queue = &mut interface.queues()[0];
    for seed in 0..3 {
        queue.send(&[&bytes(5000, seed)], Offload::default()).unwrap();
    }
    queue.flush();
    lie(&mut backend);
    interface.poll().unwrap();
    ended(&mut interface, &backend, what);
}

/// Answers the first transmit slot as `lie` has it.
fn answer_first(backend: &mut Backend, lie: impl FnOnce(tx::Response) -> tx::Response) {
    let queue = &mut backend.queues[0];
    let (slot, token) = queue.tx.take_request().unwrap().unwrap();
    let honest = tx::Response { id: slot.request().id, status: Status::OKAY };
    queue.answer_tx(token, lie(honest));
}

#[test]
fn ids_that_were_never_given_out() {
    for change in [1_u16 << 8, 1 << 15, 7, u16::MAX] {
        tx_fault("response to no request", |backend| {
            answer_first(backend, |honest| tx::Response { id: honest.id ^ change, ..honest });
        });
    }
}

#[test]
fn one_request_answered_twice() {
    tx_fault("response to no request", |backend| {
        let queue = &mut backend.queues[0];
        let (slot, first) = queue.tx.take_request().unwrap().unwrap();
        let (_, second) = queue.tx.take_request().unwrap().unwrap();
        let response = tx::Response { id: slot.request().id, status: Status::OKAY };
        queue.answer_tx(first, response);
        queue.answer_tx(second, response);
    });
}

#[test]
fn extras_answered_that_were_not_there() {
    tx_fault("response to no extra", |backend| answer_first(backend, |_| tx::Response::NULL));
}

#[test]
fn statuses_that_there_are_not() {
    for status in [2, 100, -3, i16::MIN] {
        tx_fault("unknown status", |backend| {
            answer_first(backend, |honest| tx::Response { status: Status(status), ..honest });
        });
    }
}

#[test]
fn what_a_backend_fails_to_send_is_counted_and_no_fault() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let queue = &mut interface.queues()[0];
    for seed in 0..2 {
        queue.send(&[&bytes(60, seed)], Offload::default()).unwrap();
    }
    queue.flush();
    answer_first(&mut backend, |honest| tx::Response { status: Status::ERROR, ..honest });
    answer_first(&mut backend, |honest| tx::Response { status: Status::DROPPED, ..honest });
    interface.poll().unwrap();
    assert!(interface.ending().is_none());
    assert_eq!((interface.counters().failed, interface.counters().dropped), (1, 1));
}

#[test]
fn indexes_that_cannot_be() {
    for producer in [7_u32, 1000, u32::MAX, 1 << 31] {
        tx_fault("response_producer", |backend| {
            let ring = backend.map(backend.front_key("tx-ring-ref").unwrap());
            // rsp_prod, io/ring.h
            ring.write_at(8, &producer.to_ne_bytes()).unwrap();
        });
        rx_fault("response_producer", |backend| {
            let ring = backend.map(backend.front_key("rx-ring-ref").unwrap());
            ring.write_at(8, &producer.wrapping_add(1000).to_ne_bytes()).unwrap();
        });
    }
}

#[test]
fn what_a_backend_writes_into_slots_reaches_nobody() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let tx = backend.map(backend.front_key("tx-ring-ref").unwrap());
    let packet = (bytes(9000, 1), Offload::default());
    for _ in 0..600 {
        let queue = &mut interface.queues()[0];
        queue.send(&[&packet.0], packet.1).unwrap();
        queue.flush();
        backend.poll();
        assert_eq!(backend.sent.pop(), Some(packet.clone()));
        interface.poll().unwrap();
        // Every answer was taken: what the slots hold now means nothing to anybody.
        tx.write_at(64, &[0xFF; 256 * 12]).unwrap();
    }
    assert!(interface.ending().is_none());
}

/// Gives by `lie`, and expects the end.
fn rx_fault(what: &str, lie: impl FnOnce(&mut Backend)) {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    lie(&mut backend);
    assert!(interface.queues()[0].receive().is_none(), "{what}");
    interface.poll().unwrap();
    ended(&mut interface, &backend, what);
}

fn honest(flags: Flags, size: i16) -> Answer {
    Box::new(move |request: Request| {
        Response { id: request.id, offset: 0, flags, status: size }.into()
    })
}

fn extra(more: bool, kind: Kind) -> Answer {
    Box::new(move |_| Extra { more, kind }.into())
}

#[test]
fn pages_that_were_not_posted_there() {
    for change in [1_u16, 1 << 8, u16::MAX] {
        rx_fault("response to another request", |backend| {
            let wrong: Answer = Box::new(move |request| {
                let id = request.id ^ change;
                Response { id, offset: 0, flags: Flags::NONE, status: 60 }.into()
            });
            backend.queues[0].answer_rx([wrong]);
        });
    }
    // Answered in another order than posted: frontends have always gone by the position.
    rx_fault("response to another request", |backend| {
        let swapped = |request: Request| -> rx::Slot {
            let id = request.id ^ 1;
            Response { id, offset: 0, flags: Flags::NONE, status: 60 }.into()
        };
        backend.queues[0].answer_rx([Box::new(swapped) as Answer, Box::new(swapped) as Answer]);
    });
}

#[test]
fn pieces_that_do_not_lie_in_their_page() {
    for (offset, size) in [(0_u16, 4097_i16), (1, 4096), (4095, 2), (4097, 0), (u16::MAX, i16::MAX)]
    {
        rx_fault("crosses_page", |backend| {
            let wrong: Answer = Box::new(move |request| {
                Response { id: request.id, offset, flags: Flags::NONE, status: size }.into()
            });
            backend.queues[0].answer_rx([wrong]);
        });
    }
}

#[test]
fn extras_without_end_and_of_no_kind() {
    let first = || honest(Flags::EXTRA_INFO, 60);
    let gso = Kind::Gso(Gso { size: 1448, protocol: 1, features: 0 });
    rx_fault("extra_twice", |backend| {
        let endless = (0..30).map(|_| extra(true, gso));
        backend.queues[0].answer_rx(std::iter::once(first()).chain(endless));
    });
    rx_fault("extra_type", |backend| {
        backend.queues[0].answer_rx([first(), extra(false, Kind::Unknown(9))]);
    });
    rx_fault("gso_size", |backend| {
        let none = Kind::Gso(Gso { size: 0, protocol: 1, features: 0 });
        backend.queues[0].answer_rx([first(), extra(false, none)]);
    });
    rx_fault("gso_type", |backend| {
        let odd = Kind::Gso(Gso { size: 1, protocol: 77, features: 0 });
        backend.queues[0].answer_rx([first(), extra(false, odd)]);
    });
}

#[test]
fn chains_without_end() {
    rx_fault("slot_count", |backend| {
        let endless = (0..40).map(|_| honest(Flags::MORE_DATA, 1));
        backend.queues[0].answer_rx(endless);
    });
    rx_fault("packet_cut", |backend| {
        backend.queues[0].answer_rx([honest(Flags::MORE_DATA, 60)]);
    });
    rx_fault("packet_cut", |backend| {
        backend.queues[0].answer_rx([honest(Flags::EXTRA_INFO, 60)]);
    });
}

#[test]
fn chains_without_a_packet_are_lost_with_no_page_lost() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let none = Kind::McastAdd([1, 0, 0x5E, 0, 0, 1]);
    let mut unusable = 0;
    for round in 0..400_usize {
        let queue = &mut backend.queues[0];
        match round % 5 {
            0 => queue.answer_rx([honest(Flags::NONE, -1)]),
            1 => queue.answer_rx([honest(Flags::NONE, 13)]),
            2 => queue.answer_rx([honest(Flags::MORE_DATA, 4096), honest(Flags::NONE, -1)]),
            3 => queue.answer_rx([honest(Flags::EXTRA_INFO, 60), extra(false, none)]),
            _ => queue.answer_rx(
                (0..19).map(|n| honest(if n < 18 { Flags::MORE_DATA } else { Flags::NONE }, 4096)),
            ),
        }
        unusable += 1;
        assert!(receive(&mut interface, 0).is_empty());
        interface.poll().unwrap();
        assert!(interface.ending().is_none(), "{round}: {:?}", interface.ending());
    }
    assert_eq!(interface.counters().unusable, unusable);
    // And a packet still comes through.
    assert!(backend.give(0, &(bytes(60_000, 1), Offload::default())));
    assert_eq!(receive(&mut interface, 0), [(bytes(60_000, 1), Offload::default())]);
}

#[test]
fn a_page_that_is_changed_after_it_was_given_changes_nothing_that_was_copied() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let ring = backend.map(backend.front_key("rx-ring-ref").unwrap());
    let mut slot = [0; 8];
    ring.read_at(64, &mut slot).unwrap();
    let page = backend.map(Request::decode(&slot).gref.0);
    let packet = bytes(1000, 3);
    assert!(backend.give(0, &(packet.clone(), Offload::default())));
    let mut copy = Vec::new();
    interface.queues()[0].receive_into(&mut copy).unwrap();
    page.write_at(0, &[0xFF; PAGE_SIZE]).unwrap();
    assert_eq!(copy, packet);
}

#[test]
fn pages_that_stay_mapped_are_kept_aside() {
    let (_machine, guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    backend.hoard = Some(Vec::new());
    let queue = &mut interface.queues()[0];
    for seed in 0..10 {
        queue.send(&[&bytes(60, seed)], Offload::default()).unwrap();
    }
    queue.flush();
    backend.poll();
    interface.poll().unwrap();
    let hoard = backend.hoard.take().unwrap();
    assert_eq!(hoard.len(), 10);
    // A new connection while the pages of the old one are mapped.
    backend.restart();
    connect(&mut interface, &mut backend);
    assert_eq!(interface.reclaim(), 10, "nothing of them is used again");
    let queue = &mut interface.queues()[0];
    for seed in 100..110 {
        queue.send(&[&bytes(60, seed)], Offload::default()).unwrap();
    }
    queue.flush();
    for (seed, page) in hoard.iter().enumerate() {
        let mut seen = vec![0; 60];
        page.read_at(0, &mut seen).unwrap();
        assert_eq!(seen, bytes(60, seed), "what was sent later is not seen there");
    }
    drop(hoard);
    assert_eq!(interface.reclaim(), 0);
    drop(interface);
    assert!(guest.pages_in_use() > 0, "an interface that was not closed keeps what is granted");
}

#[test]
fn new_pages_hold_nothing_of_ours() {
    let (_machine, guest, mut interface, backend) = scene(Features::default(), Config::default());
    // Pages of this domain that held something are used again for the next connection.
    interface.close().unwrap();
    backend.say(&[], State::Closed);
    interface.poll().unwrap();
    assert_eq!(interface.phase(), Phase::Closed);
    let dirty = hypervisor::memory::Granting::allocate(&guest, 2000, backend.domain.id()).unwrap();
    dirty.fill(0, dirty.len(), 0xAA).unwrap();
    drop(dirty);
    let pair = hypervisor::xenbus::Pair::new("vif", 0, guest.id(), backend.domain.id());
    pair.create(&backend.domain.open_control_store().unwrap(), &[], &[]).unwrap();
    let mut backend = backend;
    backend.drop_rings();
    backend.offer();
    let mut interface = Interface::new(guest, DIRECTORY, Config::default());
    connect(&mut interface, &mut backend);
    let ring = backend.map(backend.front_key("rx-ring-ref").unwrap());
    let mut slots = [0; 8 * 64];
    ring.read_at(64, &mut slots).unwrap();
    for slot in slots.as_chunks::<8>().0 {
        let mut page = [1; PAGE_SIZE];
        backend.map(Request::decode(slot).gref.0).read_at(0, &mut page).unwrap();
        assert_eq!(page, [0; PAGE_SIZE]);
    }
}

#[test]
fn keys_that_make_no_sense_end_the_device() {
    for (key, value) in [
        ("feature-sg", "4294967296"),
        ("feature-rx-copy", "0"),
        ("feature-gso-tcpv4", "yes"),
        ("feature-no-csum-offload", "-1"),
        ("feature-split-event-channels", ""),
        ("multi-queue-max-queues", "0"),
        ("multi-queue-max-queues", "99999999999999999999"),
        ("feature-ctrl-ring", "\u{1}"),
    ] {
        let machine = Machine::new();
        let guest = machine.domain("guest");
        let backend = Backend::new(&machine, "backend", guest.id(), Features::default());
        let path = format!("{}/{key}", backend.seat.own);
        backend.domain.write(Transaction::NONE, &path, value.as_bytes()).unwrap();
        let mut interface = Interface::new(guest, DIRECTORY, Config::default());
        interface.poll().unwrap();
        interface.poll().unwrap();
        assert!(
            matches!(interface.ending(), Some(Ending::Fault(_))),
            "{key}={value}: {:?} {:?}",
            interface.phase(),
            interface.ending()
        );
    }
}

#[test]
fn a_multicast_change_answered_as_something_else() {
    let mut config = Config::default();
    config.multicast_control = true;
    let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config);
    let queue = &mut interface.queues()[0];
    queue.multicast(Multicast::Add([1, 0, 0x5E, 0, 0, 1])).unwrap();
    queue.flush();
    answer_first(&mut backend, |honest| honest);
    // Its second slot is an extra, which has no id.
    answer_first(&mut backend, |_| tx::Response { id: 0xFFFF, status: Status::OKAY });
    interface.poll().unwrap();
    ended(&mut interface, &backend, "response to no request");
}
