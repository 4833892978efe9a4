//! A device's two ends, neither of them privileged, meeting in the real server.
#![cfg(feature = "std")]

use std::time::Duration;

use hypervisor::DomId;
use hypervisor::store::{Permission, Store, StoreError, Transaction, Watches};
use hypervisor::xenbus::device::Removed;
use hypervisor::xenbus::{End, Pair, Published, State};
use hypervisor::xenstore::Client;
use hypervisor::xenstore::server::Service;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

const NONE: Transaction = Transaction::NONE;

struct World {
    service: Service,
    control: Client,
    back: Client,
    front: Client,
    pair: Pair,
}

fn world() -> World {
    let service = Service::spawn_private().unwrap();
    let control = service.handle().client(DomId::ZERO).unwrap();
    let [back, front] = [1, 2].map(|number| {
        let domain = DomId::new(number).unwrap();
        let home = control.domain_path(domain).unwrap();
        control.write(NONE, &home, b"").unwrap();
        let owner = Permission { domain, read: false, write: false };
        control.set_permissions(NONE, &home, &[owner]).unwrap();
        service.handle().introduce(domain);
        (domain, service.handle().client(domain).unwrap())
    });
    let pair = Pair::new("vbd", 51712, front.0, back.0);
    pair.create(&control, &[], &[("mode", "w".into())]).unwrap();
    World { service, control, back: back.1, front: front.1, pair }
}

/// Waits until a watch of `client` is told of something and `holds`.
fn until(client: &Client, mut holds: impl FnMut() -> bool) {
    while !holds() {
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(Duration::from_secs(60)).unwrap());
        assert!(ready != Ok(0), "nothing changed");
        while client.changed().unwrap().is_some() {}
    }
}

#[test]
fn both_ends_connect_and_part() {
    let World { service: _service, control, back, front, pair } = world();
    let (ours, theirs) = (pair.seat(End::Back), pair.seat(End::Front));
    back.watch("backend/vbd", "back").unwrap();
    back.watch(&format!("{}/state", ours.opposite), "front").unwrap();
    front.watch(&format!("{}/state", theirs.opposite), "back").unwrap();

    let offer = [("feature-persistent", "1".to_owned())];
    assert_eq!(ours.publish(&back, &offer, State::InitWait).unwrap(), Published::Done);
    until(&front, || theirs.peer_state(&front).unwrap() == State::InitWait);
    let features = theirs.peer_keys(&front, NONE);
    assert_eq!(features.bytes("feature-persistent").unwrap().as_deref(), Some(&b"1"[..]));

    let ring = [("ring-ref", "8".to_owned()), ("event-channel", "3".to_owned())];
    assert_eq!(theirs.publish(&front, &ring, State::Initialised).unwrap(), Published::Done);
    until(&back, || ours.peer_state(&back).unwrap() == State::Initialised);
    assert_eq!(ours.peer_keys(&back, NONE).number("ring-ref", 0..=u32::MAX).unwrap(), Some(8));
    assert_eq!(ours.publish(&back, &[], State::Connected).unwrap(), Published::Done);
    until(&front, || theirs.peer_state(&front).unwrap() == State::Connected);

    // Neither writes what is the other's.
    let refused = front.write(NONE, &format!("{}/mode", ours.own), b"r").unwrap_err();
    assert!(matches!(refused, StoreError::Refused { errno: 13, .. }), "{refused}");
    let refused = back.write(NONE, &format!("{}/state", theirs.own), b"6").unwrap_err();
    assert!(matches!(refused, StoreError::Refused { errno: 13, .. }), "{refused}");

    // The toolstack asks, both let go, and all of it vanishes.
    pair.ask_to_leave(&control).unwrap();
    until(&front, || theirs.peer_state(&front).unwrap() == State::Closing);
    for (seat, client) in [(&theirs, &front), (&ours, &back)] {
        assert_ne!(pair.remove(&control, false).unwrap(), Removed::Done);
        let _ = seat.publish(client, &[], State::Closing).unwrap();
        assert_eq!(seat.publish(client, &[], State::Closed).unwrap(), Published::Done);
    }
    assert_eq!(pair.remove(&control, false).unwrap(), Removed::Done);
    assert_eq!(theirs.peer_state(&front).unwrap(), State::Unknown);
    assert_eq!(ours.peer_state(&back).unwrap(), State::Unknown);
    assert_eq!(ours.publish(&back, &[], State::InitWait).unwrap(), Published::Gone);
}

#[test]
fn a_frontend_that_dies_is_unknown_to_its_backend() {
    let World { service, control: _, back, front: _, pair } = world();
    let ours = pair.seat(End::Back);
    back.watch(&ours.opposite, "front").unwrap();
    until(&back, || ours.peer_state(&back).unwrap() == State::Initialising);
    service.handle().release(pair.front.domain);
    until(&back, || ours.peer_state(&back).unwrap() == State::Unknown);
    assert_eq!(ours.own_state(&back, NONE).unwrap(), State::Initialising, "ours stands");
}
