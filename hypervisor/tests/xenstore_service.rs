//! The client against the running server.
#![cfg(feature = "std")]

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hypervisor::store::{
    Changed, Ended, Permission, Store, StoreError, Transaction, Transactions, Watches, transact,
};
use hypervisor::xenstore::Client;
use hypervisor::xenstore::server::Service;
use hypervisor::xenstore::wire::{self, Kind, Parser};
use hypervisor::{DomId, EventPort};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const NONE: Transaction = Transaction::NONE;

fn domain(number: u16) -> DomId {
    DomId::new(number).unwrap()
}

fn store() -> (Service, Client) {
    let service = Service::spawn_private().unwrap();
    let client = service.handle().client(DomId::ZERO).unwrap();
    (service, client)
}

fn readable(client: &Client, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap()) {
            Ok(ready) => return ready > 0,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Waits, as an event loop does, for the next change.
fn next(client: &Client) -> Changed {
    loop {
        assert!(readable(client, Duration::from_secs(60)), "nothing changed");
        if let Some(changed) = client.changed().unwrap() {
            return changed;
        }
    }
}

fn changed(path: &str, token: &str) -> Changed {
    Changed { path: path.into(), token: token.into() }
}

#[test]
fn keys_and_values() {
    let (_service, store) = store();
    assert_eq!(store.read(NONE, "/a/b"), Err(StoreError::Missing("/a/b".into())));
    store.write(NONE, "/a/b", b"\0binary\xff").unwrap();
    assert_eq!(store.read(NONE, "/a/b").unwrap(), b"\0binary\xff");
    assert_eq!(store.read(NONE, "/a").unwrap(), b"");
    store.make(NONE, "/a/c").unwrap();
    store.make(NONE, "/a/b").unwrap();
    assert_eq!(store.list(NONE, "/a").unwrap(), ["b", "c"]);
    store.remove(NONE, "/a").unwrap();
    store.remove(NONE, "/a/b/c").unwrap();
    assert_eq!(store.list(NONE, "/").unwrap(), ["tool"]);
    for bad in ["", "/a//b", "/a\0", "/a b"] {
        let refused = store.write(NONE, bad, b"").unwrap_err();
        assert!(matches!(refused, StoreError::Refused { errno: 22, .. }), "{refused}");
    }
    let refused = store.write(NONE, "/big", &[0; 5000]).unwrap_err();
    assert!(matches!(refused, StoreError::Refused { errno: 7, .. }), "{refused}");
    store.write(NONE, "/still", b"there").unwrap();
}

#[test]
fn a_list_longer_than_a_message_comes_in_parts() {
    let (_service, store) = store();
    let names: Vec<String> = (0..2000).map(|number| format!("child-{number:06}")).collect();
    transact(&store, |within| {
        names.iter().try_for_each(|name| store.write(within, &format!("/long/{name}"), b""))
    })
    .unwrap();
    assert_eq!(store.list(NONE, "/long").unwrap(), names);
}

#[test]
fn transactions_conflict_on_what_they_saw() {
    let (service, store) = store();
    let other = service.handle().client(DomId::ZERO).unwrap();
    store.write(NONE, "/a", b"1").unwrap();
    store.write(NONE, "/b", b"1").unwrap();

    let first = store.begin().unwrap();
    assert_eq!(store.read(first, "/a").unwrap(), b"1");
    store.write(first, "/new", b"x").unwrap();
    assert_eq!(other.read(NONE, "/new"), Err(StoreError::Missing("/new".into())));
    other.write(NONE, "/b", b"2").unwrap();
    assert_eq!(store.end(first, true).unwrap(), Ended::Committed, "/b was not seen");
    assert_eq!(other.read(NONE, "/new").unwrap(), b"x");

    let second = store.begin().unwrap();
    store.read(second, "/a").unwrap();
    store.write(second, "/b", b"3").unwrap();
    other.write(NONE, "/a", b"2").unwrap();
    assert_eq!(store.read(second, "/a").unwrap(), b"1", "it works on a copy");
    assert_eq!(store.end(second, true).unwrap(), Ended::Conflict);
    assert_eq!(store.read(NONE, "/b").unwrap(), b"2");
    assert!(store.end(second, true).is_err(), "it is gone");

    let third = store.begin().unwrap();
    store.remove(third, "/a").unwrap();
    assert_eq!(store.end(third, false).unwrap(), Ended::Committed);
    assert_eq!(store.read(NONE, "/a").unwrap(), b"2");
}

#[test]
fn counting_in_transactions_loses_nothing() {
    let (service, store) = store();
    store.write(NONE, "/count", b"0").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let own = service.handle().client(DomId::ZERO).unwrap();
            scope.spawn(move || {
                for _ in 0..50 {
                    // Without a bound on how often it is tried: who loses how often is luck.
                    loop {
                        let within = own.begin().unwrap();
                        let text = own.read(within, "/count").unwrap();
                        let count: u32 = String::from_utf8(text).unwrap().parse().unwrap();
                        own.write(within, "/count", (count + 1).to_string().as_bytes()).unwrap();
                        if own.end(within, true).unwrap() == Ended::Committed {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(store.read(NONE, "/count").unwrap(), b"200");
}

#[test]
fn watches_fire_on_registration_and_on_change() {
    let (service, store) = store();
    let other = service.handle().client(DomId::ZERO).unwrap();
    store.watch("/a", "token").unwrap();
    assert_eq!(next(&store), changed("/a", "token"));
    other.write(NONE, "/a/b", b"").unwrap();
    assert_eq!(next(&store), changed("/a/b", "token"));
    other.remove(NONE, "/a/b").unwrap();
    assert_eq!(next(&store), changed("/a/b", "token"));
    other.write(NONE, "/ab", b"").unwrap();
    let twice = store.watch("/a", "token").unwrap_err();
    assert!(matches!(twice, StoreError::Refused { errno: 17, .. }), "{twice}");
    store.unwatch("/a", "token").unwrap();
    other.write(NONE, "/a", b"").unwrap();
    store.read(NONE, "/a").unwrap();
    assert_eq!(store.changed().unwrap(), None);
}

#[test]
fn events_that_came_before_a_reply_make_the_descriptor_readable() {
    let (_service, store) = store();
    store.watch("/a", "token").unwrap();
    assert_eq!(next(&store), changed("/a", "token"));
    assert!(!readable(&store, Duration::ZERO));
    store.write(NONE, "/a", b"1").unwrap();
    // The event precedes this reply on the socket, so nothing is left there to be readable.
    store.read(NONE, "/a").unwrap();
    assert!(readable(&store, Duration::ZERO));
    assert_eq!(store.changed().unwrap(), Some(changed("/a", "token")));
    assert_eq!(store.changed().unwrap(), None);
    assert!(!readable(&store, Duration::ZERO));
}

#[test]
fn a_domain_has_a_home_and_relative_paths() {
    let (service, store) = store();
    let home = store.domain_path(domain(7)).unwrap();
    assert_eq!(home, "/local/domain/7");
    store.write(NONE, &home, b"").unwrap();
    let owner = Permission { domain: domain(7), read: false, write: false };
    store.set_permissions(NONE, &home, &[owner]).unwrap();
    assert_eq!(store.permissions(NONE, &home).unwrap(), [owner]);

    let guest = service.handle().client(domain(7)).unwrap();
    guest.watch("device", "d").unwrap();
    assert_eq!(next(&guest), changed("device", "d"));
    store.write(NONE, "/local/domain/7/device/vbd", b"x").unwrap();
    assert_eq!(next(&guest), changed("device/vbd", "d"));
    assert_eq!(guest.read(NONE, "device/vbd").unwrap(), b"x");
    assert!(matches!(
        guest.write(NONE, "/local/domain/8", b""),
        Err(StoreError::Refused { errno: 13, .. })
    ));
}

#[test]
fn domains_come_and_go() {
    let (service, store) = store();
    store.watch("@introduceDomain", "in").unwrap();
    store.watch("@releaseDomain", "out").unwrap();
    assert_eq!(next(&store), changed("@introduceDomain", "in"));
    assert_eq!(next(&store), changed("@releaseDomain", "out"));
    store.introduce(domain(3), 0, EventPort(0)).unwrap();
    assert_eq!(next(&store), changed("@introduceDomain", "in"));
    assert!(store.is_introduced(domain(3)).unwrap());
    service.handle().introduce(domain(4));
    assert_eq!(next(&store), changed("@introduceDomain", "in"));
    store.release(domain(3)).unwrap();
    assert_eq!(next(&store), changed("@releaseDomain", "out"));
    assert!(!store.is_introduced(domain(3)).unwrap());

    let guest = service.handle().client(domain(4)).unwrap();
    guest.introduce(domain(5), 0, EventPort(0)).unwrap_err();
    service.handle().release(domain(4));
    assert_eq!(next(&store), changed("@releaseDomain", "out"));
    assert!(guest.read(NONE, "x").is_err());
    assert!(readable(&guest, Duration::from_secs(60)));
    assert!(guest.changed().is_err());
}

#[test]
fn reset_ends_watches_and_transactions() {
    let (_service, store) = store();
    store.watch("/a", "t").unwrap();
    let open = store.begin().unwrap();
    store.reset_watches().unwrap();
    assert!(store.read(open, "/").is_err());
    store.write(NONE, "/a", b"").unwrap();
    store.read(NONE, "/a").unwrap();
    assert_eq!(store.changed().unwrap(), None);
}

#[test]
fn a_listening_store_takes_whoever_may_open_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let service = Service::spawn(UnixListener::bind(&path).unwrap()).unwrap();
    let clients: Vec<Client> = (0..20).map(|_| Client::connect(&path).unwrap()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.write(NONE, &format!("/n/{number}"), b"").unwrap();
    }
    assert_eq!(clients[0].list(NONE, "/n").unwrap().len(), 20);
    drop(service);
    assert!(clients[0].list(NONE, "/n").is_err());
    let error = Client::connect(folder.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("connect to the store at") && error.contains("none"), "{error}");
}

#[test]
fn a_store_that_talks_nonsense_is_lost_and_says_so() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = Client::from_stream(ours).unwrap();
    (&theirs).write_all(&[0xff; 64]).unwrap();
    let error = client.read(NONE, "/").unwrap_err();
    assert!(matches!(error, StoreError::Lost(_)), "{error}");
    assert!(readable(&client, Duration::ZERO));
    assert!(client.changed().is_err());
}

#[test]
fn who_does_not_read_keeps_nobody_waiting_and_loses_nothing() {
    let service = Service::spawn_private().unwrap();
    let (slow, theirs) = UnixStream::pair().unwrap();
    service.handle().add_connection(theirs, DomId::ZERO).unwrap();
    let store = service.handle().client(DomId::ZERO).unwrap();
    store.write(NONE, "/a", &[b'x'; 4000]).unwrap();

    let read = wire::encode(Kind::Read, 1, 0, &[b"/a\0"]).unwrap();
    slow.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut sent = 0;
    // Until the store takes no more: it refuses for as long as it takes others to be served.
    while Instant::now() < deadline {
        match (&slow).write(&read.repeat(100)) {
            Ok(len) => sent += len,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                let before = sent;
                for _ in 0..50 {
                    store.read(NONE, "/a").unwrap();
                }
                if let Ok(len) = (&slow).write(&read.repeat(100)) {
                    sent += len;
                }
                if sent == before {
                    break;
                }
            }
        }
    }
    // The pipes between hold some hundred KiB; what the store itself holds is less.
    assert!(sent < 16 << 20, "{sent} bytes were taken from one that reads nothing");
    // What was cut in two is made whole while the replies are read.
    let cut = sent % read.len();
    slow.set_nonblocking(false).unwrap();
    let whole = sent / read.len() + usize::from(cut > 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if cut > 0 {
                (&slow).write_all(&read[cut..]).unwrap();
            }
        });
        let mut parser = Parser::default();
        let mut replies = 0;
        let mut buffer = [0; 65536];
        while replies < whole {
            let len = (&slow).read(&mut buffer).unwrap();
            assert!(len > 0, "cut off after {replies} of {whole}");
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                rest = &rest[parser.feed(rest).unwrap()..];
                if let Some(message) = parser.take() {
                    assert_eq!(message.payload.len(), 4000);
                    replies += 1;
                }
            }
        }
    });
}

#[test]
fn who_breaks_the_protocol_is_cut_off_alone() {
    let service = Service::spawn_private().unwrap();
    let store = service.handle().client(DomId::ZERO).unwrap();
    for bytes in [&[0xff_u8; 64][..], &[0; 15]] {
        let (bad, theirs) = UnixStream::pair().unwrap();
        service.handle().add_connection(theirs, domain(1)).unwrap();
        (&bad).write_all(bytes).unwrap();
        bad.shutdown(std::net::Shutdown::Write).unwrap();
        let mut left = Vec::new();
        // Being reset is as good an end as being closed.
        let _ = (&bad).read_to_end(&mut left);
        assert!(left.is_empty(), "{left:?}");
    }
    store.write(NONE, "/a", b"").unwrap();
}
