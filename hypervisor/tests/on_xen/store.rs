//! The store, by its socket and by the kernel's device.

use std::fs::OpenOptions;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use hypervisor::DomId;
use hypervisor::host::Domain as _;
use hypervisor::store::{
    Ended, Permission, Store, StoreError, Transaction, Transactions, Watches, transact,
};
use hypervisor::xenstore::Client;

use crate::{PATIENCE, domain, readable};

const NONE: Transaction = Transaction::NONE;
const DEVICE: &str = "/dev/xen/xenbus";

fn device() -> Client {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    Client::from_device(options.open(DEVICE).unwrap()).unwrap()
}

/// The next change, which must come.
fn next<S: Watches>(store: &S, fd: impl std::os::fd::AsFd) -> hypervisor::store::Changed {
    loop {
        if let Some(changed) = store.changed().unwrap() {
            return changed;
        }
        assert!(readable(&fd, PATIENCE), "a change is told");
    }
}

fn everything<S: Transactions + Watches>(
    store: &S,
    fd: impl std::os::fd::AsFd,
    home: &str,
    device: bool,
) {
    store.remove(NONE, home).unwrap();
    assert!(matches!(store.read(NONE, home), Err(StoreError::Missing(_))));
    store.write(NONE, &format!("{home}/a/b"), b"value").unwrap();
    assert_eq!(store.read(NONE, &format!("{home}/a/b")).unwrap(), b"value");
    assert_eq!(store.list(NONE, &format!("{home}/a")).unwrap(), ["b"]);
    let owner = Permission { domain: DomId::ZERO, read: true, write: false };
    let other = Permission { domain: DomId::new(3).unwrap(), read: true, write: true };
    store.set_permissions(NONE, &format!("{home}/a"), &[owner, other]).unwrap();
    assert_eq!(store.permissions(NONE, &format!("{home}/a")).unwrap(), [owner, other]);
    let refused = store.read(NONE, "no//path").unwrap_err();
    assert!(matches!(refused, StoreError::Refused { .. }), "{refused:?}");

    // More than fits into one reply.
    for number in 0..300 {
        store.write(NONE, &format!("{home}/many/child-number-{number}"), b"").unwrap();
    }
    match store.list(NONE, &format!("{home}/many")) {
        Ok(children) => assert_eq!(children.len(), 300),
        // oxenstored has no directory parts (ENOSYS), and the device takes no longer replies.
        Err(StoreError::Refused { errno: 38, .. }) if device => {}
        Err(error) => panic!("{error}"),
    }

    store.watch(home, "token").unwrap();
    assert_eq!(next(store, &fd).path, home);
    assert!(store.changed().unwrap().is_none());
    store.write(NONE, &format!("{home}/a/c"), b"").unwrap();
    let changed = next(store, &fd);
    assert_eq!((changed.path.as_str(), changed.token.as_str()), (&*format!("{home}/a/c"), "token"));
    assert!(!readable(&fd, 0));
    store.unwatch(home, "token").unwrap();

    let count = format!("{home}/count");
    store.write(NONE, &count, b"0").unwrap();
    let transaction = store.begin().unwrap();
    store.write(transaction, &count, b"1").unwrap();
    assert_eq!(store.read(NONE, &count).unwrap(), b"0");
    assert_eq!(store.end(transaction, true).unwrap(), Ended::Committed);
    assert_eq!(store.read(NONE, &count).unwrap(), b"1");
    let transaction = store.begin().unwrap();
    store.read(transaction, &count).unwrap();
    store.write(transaction, &count, b"2").unwrap();
    store.write(NONE, &count, b"5").unwrap();
    assert_eq!(store.end(transaction, true).unwrap(), Ended::Conflict);
    let transaction = store.begin().unwrap();
    store.write(transaction, &count, b"6").unwrap();
    assert_eq!(store.end(transaction, false).unwrap(), Ended::Committed);
    assert_eq!(store.read(NONE, &count).unwrap(), b"5");
    store.remove(NONE, home).unwrap();
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn the_domain_itself() {
    let domain = domain();
    assert_eq!(domain.id(), DomId::ZERO);
    everything(&domain, domain.changes(), "/local/domain/0/domkit-test-domain", false);
    let control = domain.open_control_store().unwrap();
    everything(&control, control.as_fd(), "/local/domain/0/domkit-test-control", false);
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn the_kernels_device() {
    let client = device();
    everything(&client, client.as_fd(), "/local/domain/0/domkit-test-device", true);
    // What the device does not take is refused, and the connection goes on.
    let error = client.write(NONE, "/local/domain/0/domkit-test-long", &[b'x'; 4090]).unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    assert!(client.reset_watches().is_err());
    assert_eq!(client.read(NONE, "domid").unwrap(), b"0");
    // Watches that cannot be are refused by the kernel itself.
    let error = client.watch("no//path", "token").unwrap_err();
    println!("{error}");
    assert_eq!(client.read(NONE, "domid").unwrap(), b"0");
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn many_threads_count_in_transactions() {
    const KEY: &str = "/local/domain/0/domkit-test-counter";
    let domain = domain();
    domain.write(NONE, KEY, b"0").unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let domain = domain.clone();
            scope.spawn(move || {
                let device = device();
                for _ in 0..25 {
                    let add = |store: &dyn Transactions| {
                        transact(store, |within| -> Result<(), StoreError> {
                            let text = store.read(within, KEY)?;
                            let count: u32 = String::from_utf8(text).unwrap().parse().unwrap();
                            store.write(within, KEY, (count + 1).to_string().as_bytes())
                        })
                    };
                    if number % 2 == 0 { add(&domain) } else { add(&device) }.unwrap();
                }
            });
        }
    });
    assert_eq!(domain.read(NONE, KEY).unwrap(), b"100");
    domain.remove(NONE, KEY).unwrap();
}
