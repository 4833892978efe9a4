//! Processes that say nonsense to the broker: it disconnects or refuses them, and goes on.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::domain::DomainSpec;
use crate::embedded::broker::message::{Reply, Request, Spec};
use crate::embedded::frame;
use crate::embedded::session::Session;
use crate::testing::Machine;

use super::wait_until;

fn connect(machine: &Machine) -> OwnedFd {
    frame::connect(&machine.place().control_socket()).unwrap()
}

fn is_closed(socket: &OwnedFd) -> bool {
    let mut byte = [0; 1];
    matches!(
        recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT),
        Ok(0) | Err(Errno::ECONNRESET)
    )
}

fn refused(session: &Session, request: &Request) -> bool {
    matches!(session.ask(request).unwrap(), (Reply::Refused(_), _))
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let machine = Machine::new();
    let good = Session::connect(machine.place()).unwrap();
    let nonsense: [&[u8]; 5] = [
        b"{",
        b"\xFF\xFE",
        b"\"Info\" \"Info\"",
        br#"{"Share":{"granter":99999}}"#,
        &[b'['; 60_000],
    ];
    for bytes in nonsense {
        let socket = connect(&machine);
        send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
        wait_until("it is disconnected", || is_closed(&socket));
    }
    let socket = connect(&machine);
    let too_long = vec![b' '; frame::LIMIT + 1];
    send(socket.as_raw_fd(), &too_long, MsgFlags::MSG_NOSIGNAL).unwrap();
    wait_until("it is disconnected", || is_closed(&socket));
    assert!(matches!(good.ask(&Request::Info).unwrap().0, Reply::Info(_)));
}

#[test]
fn who_never_reads_is_disconnected() {
    let machine = Machine::new();
    let socket = connect(&machine);
    let request = serde_json::to_vec(&Request::Info).unwrap();
    wait_until("its replies do not fit", || {
        let sent =
            send(socket.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
        matches!(sent, Err(Errno::EPIPE | Errno::ECONNRESET))
    });
    drop(machine.domain("still-served"));
}

#[test]
fn what_is_asked_out_of_place_is_refused() {
    let machine = Machine::new();
    let session = Session::connect(machine.place()).unwrap();
    let spec = || Spec::from(&DomainSpec::new("guest"));
    // As nobody.
    for request in [
        Request::Share { granter: 1 },
        Request::Allocate { peer: 1 },
        Request::Bind { peer: 1, port: 1 },
        Request::Close { port: 1 },
        Request::Release { share: 0 },
        Request::OpenStore,
        Request::Join { domain: Some(77), spec: spec() },
        Request::Join { domain: Some(u16::MAX), spec: spec() },
        Request::Destroy { domain: 77 },
        Request::SetTarget { domain: 77, target_kib: u64::MAX },
    ] {
        assert!(refused(&session, &request), "{request:?}");
    }
    // As a domain.
    let (reply, beside) = session.ask(&Request::Join { domain: None, spec: spec() }).unwrap();
    let Reply::Joined { domain, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(beside.len(), 4);
    for request in [
        Request::Join { domain: None, spec: spec() },
        Request::Destroy { domain },
        Request::Info,
        Request::Close { port: 1 },
        Request::Bind { peer: domain, port: 0 },
        Request::Share { granter: u16::MAX },
        Request::Release { share: u64::MAX },
    ] {
        assert!(refused(&session, &request), "{request:?}");
    }
}

#[test]
fn one_process_cannot_use_up_another_s_share_of_a_domain() {
    let machine = Machine::new();
    let front = machine.domain("front");
    let session = Session::connect(machine.place()).unwrap();
    let spec = Spec::from(&DomainSpec::new("greedy"));
    session.ask(&Request::Join { domain: None, spec }).unwrap();
    let share = Request::Share { granter: front.id().get() };
    let mut held = 0;
    while let (Reply::Shared { .. }, _) = session.ask(&share).unwrap() {
        held += 1;
    }
    assert!(held < 31, "{held}");
}

#[test]
fn those_who_come_and_go_leave_nothing() {
    let machine = Machine::new();
    for _ in 0..2000 {
        drop(connect(&machine));
    }
    let session = Session::connect(machine.place()).unwrap();
    wait_until("no domain is left", || {
        let (reply, _) = session.ask(&Request::Info).unwrap();
        matches!(reply, Reply::Info(info) if info.domains == 0 && info.free_kib == info.total_kib)
    });
}
