//! Backends that go and come back.

use hypervisor::store::{Store, Transaction};
use hypervisor::xenbus::State;
use netfront::{Config, Ending, Offload, Offloads, Phase, Refused};

use crate::backend::{Backend, Features, bytes, connect, receive, scene};

/// Sends, has the backend answer some, and leaves the rest on the ring, as well as packets that
/// were given and not received.
fn interrupt(interface: &mut crate::backend::TestInterface, backend: &mut Backend) {
    let queue = &mut interface.queues()[0];
    for seed in 0..10 {
        queue.send(&[&bytes(60, seed)], Offload::default()).unwrap();
    }
    queue.flush();
    backend.take(0, 4);
    assert!(backend.give(0, &(bytes(5000, 1), Offload::default())));
}

fn exchange(interface: &mut crate::backend::TestInterface, backend: &mut Backend) {
    backend.sent.clear();
    let large = bytes(60_000, 7);
    let queue = &mut interface.queues()[0];
    queue.send(&[&large], Offload::default()).unwrap();
    queue.flush();
    backend.poll();
    assert_eq!(backend.sent, [(large.clone(), Offload::default())]);
    assert!(backend.give(0, &(large.clone(), Offload::default())));
    assert_eq!(receive(interface, 0), [(large, Offload::default())]);
}

#[test]
fn a_backend_that_asks_for_a_new_connection_gets_one() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    interrupt(&mut interface, &mut backend);
    backend.restart();
    connect(&mut interface, &mut backend);
    exchange(&mut interface, &mut backend);
    // Four were answered; whether that was seen before the backend went is another matter.
    let interrupted = interface.counters().interrupted;
    assert!((6..=10).contains(&interrupted), "{interrupted}");
}

#[test]
fn a_backend_that_is_restarted_in_place_goes_on_with_the_rings_that_are_there() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    for round in 1..20 {
        interrupt(&mut interface, &mut backend);
        assert_eq!(receive(&mut interface, 0).len(), 1);
        backend.drop_rings();
        assert!(backend.connect());
        interface.poll().unwrap();
        assert_eq!(interface.counters().interrupted, 0);
        backend.poll();
        exchange(&mut interface, &mut backend);
        assert_eq!(interface.counters().sent, round * 11);
    }
    interface.poll().unwrap();
    assert_eq!(interface.queues()[0].in_flight(), 0);
}

#[test]
fn a_backend_that_died_is_waited_for_and_its_successor_is_another_domain() {
    let (machine, guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    interrupt(&mut interface, &mut backend);
    backend.drop_rings();
    let Backend { domain, .. } = backend;
    domain.leave();
    drop(domain);
    // The store learns of the death from the broker, which is another thread.
    for _ in 0..3000 {
        interface.poll().unwrap();
        if interface.phase() == Phase::Lost {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(interface.phase(), Phase::Lost);
    let queue = &mut interface.queues()[0];
    assert_eq!(queue.send(&[&bytes(60, 1)], Offload::default()), Err(Refused::Unlinked));
    assert!(queue.receive().is_none());
    // Its successor takes less.
    let features = Features { offloads: Offloads::NONE, split: false, ..Features::default() };
    let mut backend = Backend::new(&machine, "successor", guest.id(), features);
    connect(&mut interface, &mut backend);
    let queue = &mut interface.queues()[0];
    assert_eq!(queue.longest(), 4096);
    queue.send(&[&bytes(1500, 1)], Offload::default()).unwrap();
    queue.flush();
    backend.poll();
    assert_eq!(backend.sent.len(), 1);
}

#[test]
fn what_was_taken_from_an_earlier_connection_does_no_harm() {
    let (_machine, _guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let queue = &mut interface.queues()[0];
    let (sent, unused) = (queue.place(60_000).unwrap(), queue.place(60_000).unwrap());
    assert!(backend.give(0, &(bytes(5000, 1), Offload::default())));
    let (first, second) = (interface.queues()[0].receive().unwrap(), bytes(5000, 2));
    assert!(backend.give(0, &(second, Offload::default())));
    let second = interface.queues()[0].receive().unwrap();
    backend.restart();
    connect(&mut interface, &mut backend);
    let queue = &mut interface.queues()[0];
    queue.write(&sent, &[&bytes(60, 1)]);
    assert_eq!(queue.send_place(sent, 60, Offload::default()), Err(Refused::Unlinked));
    queue.put_back(unused);
    let mut seen = vec![0xAB; 5000];
    assert_eq!(queue.read(&first, 0, &mut seen), 0);
    assert_eq!(seen, [0xAB; 5000]);
    queue.release(first);
    queue.release(second);
    exchange(&mut interface, &mut backend);
}

#[test]
fn a_backend_that_goes_again_and_again_costs_no_page() {
    let (_machine, guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    let mut pages = Vec::new();
    for _ in 0..10 {
        interrupt(&mut interface, &mut backend);
        backend.restart();
        connect(&mut interface, &mut backend);
        exchange(&mut interface, &mut backend);
        assert_eq!(interface.reclaim(), 0);
        pages.push(guest.pages_in_use());
    }
    assert_eq!(pages.first(), pages.last(), "no page is lost: {pages:?}");
}

#[test]
fn an_interface_that_is_taken_away_ends() {
    let (_machine, guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    interrupt(&mut interface, &mut backend);
    backend.say(&[("online", "0".to_owned())], State::Closing);
    interface.poll().unwrap();
    assert_eq!(interface.ending(), Some(&Ending::Detached));
    assert_eq!(backend.front_state(), State::Closed);
    // The backend still has the rings.
    assert!(interface.reclaim() > 0);
    backend.drop_rings();
    assert_eq!(interface.reclaim(), 0);
    assert_eq!(guest.pages_in_use(), 0);
    // What was published is no more.
    assert_eq!(backend.front_key("tx-ring-ref"), None);
    assert_eq!(backend.front_key("request-rx-copy"), None);
}

#[test]
fn an_interface_that_closes_but_stays_online_comes_back() {
    for said in [true, false] {
        let (_machine, _guest, mut interface, mut backend) =
            scene(Features::default(), Config::default());
        if !said {
            // As toolstacks of one's own may leave it.
            let online = format!("{}/online", backend.seat.own);
            backend.domain.remove(Transaction::NONE, &online).unwrap();
        }
        interrupt(&mut interface, &mut backend);
        backend.say(&[], State::Closing);
        interface.poll().unwrap();
        assert_eq!(backend.front_state(), State::Closed);
        backend.drop_rings();
        backend.say(&[], State::Closed);
        interface.poll().unwrap();
        backend.offer();
        connect(&mut interface, &mut backend);
        exchange(&mut interface, &mut backend);
    }
}

#[test]
fn closing_waits_for_the_backend() {
    let (_machine, guest, mut interface, mut backend) =
        scene(Features::default(), Config::default());
    interface.close().unwrap();
    assert_eq!((interface.phase(), backend.front_state()), (Phase::Closing, State::Closing));
    interface.poll().unwrap();
    assert_eq!(interface.phase(), Phase::Closing);
    backend.drop_rings();
    backend.say(&[], State::Closed);
    interface.poll().unwrap();
    assert_eq!((interface.phase(), backend.front_state()), (Phase::Closed, State::Closed));
    assert_eq!(interface.reclaim(), 0);
    assert_eq!(guest.pages_in_use(), 0);
}

#[test]
fn fewer_queues_than_are_in_use_are_too_few() {
    let mut config = Config::default();
    config.queues = 3;
    let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config);
    backend.features.queues = 2;
    backend.restart();
    for _ in 0..10 {
        interface.poll().unwrap();
        backend.live();
    }
    assert!(matches!(interface.ending(), Some(Ending::Changed(_))), "{:?}", interface.ending());
}

#[test]
fn another_queue_count_leaves_no_keys_of_the_former() {
    let mut config = Config::default();
    config.queues = 2;
    let (_machine, guest, mut interface, mut backend) = scene(Features::default(), config);
    assert!(backend.front_key("queue-1/tx-ring-ref").is_some());
    interface.close().unwrap();
    backend.drop_rings();
    backend.say(&[], State::Closed);
    interface.poll().unwrap();
    let left = guest.list(Transaction::NONE, crate::backend::DIRECTORY).unwrap();
    assert!(!left.iter().any(|key| key.starts_with("queue-")), "{left:?}");
}
