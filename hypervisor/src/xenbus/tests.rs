//! Both ends, and a toolstack, against a store that is a map.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use std::sync::Mutex;

use super::device::Removed;
use super::keys::Keys;
use super::*;
use crate::store::{Ended, Permission, Store, StoreError, Transaction, Transactions};
use crate::{DomId, Error};

#[derive(Default, Clone)]
struct Tree {
    nodes: BTreeMap<String, (Vec<u8>, Vec<Permission>)>,
}

/// One transaction at a time; `meddle` is what another does in the midst of the next ones.
#[derive(Default)]
struct Fake {
    real: Mutex<Tree>,
    copy: Mutex<Option<Tree>>,
    meddle: Mutex<Vec<(String, String)>>,
    unreadable: Mutex<Option<String>>,
}

impl Fake {
    fn with<T>(&self, within: Transaction, work: impl FnOnce(&mut Tree) -> T) -> T {
        if within == Transaction::NONE {
            work(&mut self.real.lock().unwrap())
        } else {
            work(self.copy.lock().unwrap().as_mut().expect("a transaction was begun"))
        }
    }

    fn get(&self, path: &str) -> Option<String> {
        let value = self.read(Transaction::NONE, path).ok()?;
        Some(String::from_utf8(value).unwrap())
    }

    fn put(&self, path: &str, value: &str) {
        self.write(Transaction::NONE, path, value.as_bytes()).unwrap();
    }
}

impl Store for Fake {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        if self.unreadable.lock().unwrap().as_deref() == Some(path) {
            return Err(StoreError::Refused { operation: "read", path: path.into(), errno: 13 });
        }
        self.with(within, |t| t.nodes.get(path).map(|n| n.0.clone()))
            .ok_or_else(|| StoreError::Missing(path.into()))
    }

    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.with(within, |t| t.nodes.entry(path.into()).or_default().0 = value.to_vec());
        Ok(())
    }

    fn list(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        let below = format!("{path}/");
        let mut names: Vec<String> = self.with(within, |t| {
            let rest = t.nodes.keys().filter_map(|k| k.strip_prefix(&below));
            rest.map(|k| k.split('/').next().unwrap().to_string()).collect()
        });
        names.dedup();
        Ok(names)
    }

    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        let below = format!("{path}/");
        self.with(within, |t| t.nodes.retain(|k, _| k != path && !k.starts_with(&below)));
        Ok(())
    }

    fn permissions(&self, within: Transaction, path: &str) -> Result<Vec<Permission>, StoreError> {
        self.with(within, |t| t.nodes.get(path).map(|n| n.1.clone()))
            .ok_or_else(|| StoreError::Missing(path.into()))
    }

    fn set_permissions(
        &self,
        within: Transaction,
        path: &str,
        permissions: &[Permission],
    ) -> Result<(), StoreError> {
        self.with(within, |t| t.nodes.get_mut(path).unwrap().1 = permissions.to_vec());
        Ok(())
    }
}

impl Transactions for Fake {
    fn begin(&self) -> Result<Transaction, StoreError> {
        *self.copy.lock().unwrap() = Some(self.real.lock().unwrap().clone());
        Ok(Transaction(1))
    }

    fn end(&self, _: Transaction, commit: bool) -> Result<Ended, StoreError> {
        let copy = self.copy.lock().unwrap().take().unwrap();
        if let Some((path, value)) = self.meddle.lock().unwrap().pop() {
            if value.is_empty() {
                self.remove(Transaction::NONE, &path).unwrap();
            } else {
                self.put(&path, &value);
            }
            return Ok(Ended::Conflict);
        }
        if commit {
            *self.real.lock().unwrap() = copy;
        }
        Ok(Ended::Committed)
    }
}

fn domain(number: u16) -> DomId {
    DomId::new(number).unwrap()
}

fn made() -> (Fake, Pair) {
    let store = Fake::default();
    let pair = Pair::new("vbd", 51712, domain(7), domain(3));
    let front = [("virtual-device", "51712".to_string())];
    let back = [("mode", "w".to_string())];
    pair.create(&store, &front, &back).unwrap();
    (store, pair)
}

const FRONT: &str = "/local/domain/7/device/vbd/51712";
const BACK: &str = "/local/domain/3/backend/vbd/7/51712";

fn key(directory: &str, key: &str) -> String {
    format!("{directory}/{key}")
}

#[test]
fn a_device_is_two_directories_that_name_each_other() {
    let (store, pair) = made();
    for (path, value) in [
        (key(FRONT, "backend"), BACK),
        (key(FRONT, "backend-id"), "3"),
        (key(FRONT, "virtual-device"), "51712"),
        (key(FRONT, "state"), "1"),
        (key(BACK, "frontend"), FRONT),
        (key(BACK, "frontend-id"), "7"),
        (key(BACK, "online"), "1"),
        (key(BACK, "mode"), "w"),
        (key(BACK, "state"), "1"),
    ] {
        assert_eq!(store.get(&path).as_deref(), Some(value), "{path}");
    }
    for (side, owner, reader) in [(FRONT, 7, 3), (BACK, 3, 7)] {
        for path in [side.to_string(), key(side, "state")] {
            let permissions = store.permissions(Transaction::NONE, &path).unwrap();
            assert_eq!(
                permissions,
                [
                    Permission { domain: domain(owner), read: false, write: false },
                    Permission { domain: domain(reader), read: true, write: false },
                ],
                "{path}"
            );
        }
    }
    assert_eq!(pair.seat(End::Back).opposite, FRONT);
    assert_eq!(pair.seat(End::Front).peer, domain(3));
}

#[test]
fn making_a_device_again_forgets_what_was_there() {
    let (store, pair) = made();
    store.put(&key(FRONT, "ring-ref"), "8");
    store.put(&key(FRONT, "state"), "4");
    pair.create(&store, &[], &[]).unwrap();
    assert_eq!(store.get(&key(FRONT, "ring-ref")), None);
    assert_eq!(store.get(&key(FRONT, "state")).as_deref(), Some("1"));
}

#[test]
fn what_is_offered_stands_before_the_state_that_promises_it() {
    let (store, pair) = made();
    let back = pair.seat(End::Back);
    let offer = [("multi-queue-max-queues", "4".to_string())];
    *store.meddle.lock().unwrap() = vec![("/elsewhere".into(), "x".into())];
    assert_eq!(back.publish(&store, &offer, State::InitWait).unwrap(), Published::Done);
    assert_eq!(store.get(&key(BACK, "multi-queue-max-queues")).as_deref(), Some("4"));
    assert_eq!(store.get(&key(BACK, "state")).as_deref(), Some("2"));
    assert_eq!(pair.seat(End::Front).peer_state(&store).unwrap(), State::InitWait);
}

#[test]
fn last_words_do_not_bring_a_removed_device_back() {
    let (store, pair) = made();
    let back = pair.seat(End::Back);
    *store.meddle.lock().unwrap() = vec![(BACK.into(), String::new())];
    let done = back.publish(&store, &[("x", "1".into())], State::InitWait).unwrap();
    assert_eq!(done, Published::Gone);
    back.complain(&store, "too late").unwrap();
    assert_eq!(store.list(Transaction::NONE, BACK).unwrap(), Vec::<String>::new());
}

#[test]
fn a_step_that_is_not_ours_is_refused() {
    let (store, pair) = made();
    let back = pair.seat(End::Back);
    store.put(&key(BACK, "state"), "6");
    let done = back.publish(&store, &[("x", "1".into())], State::Connected).unwrap();
    assert_eq!(done, Published::Refused(State::Closed));
    assert_eq!(store.get(&key(BACK, "x")), None);
    assert_eq!(back.publish(&store, &[], State::InitWait).unwrap(), Published::Done);
}

#[test]
fn a_device_is_removed_when_both_ends_are_down() {
    let (store, pair) = made();
    store.put(&key(BACK, "state"), "4");
    store.put(&key(FRONT, "state"), "4");
    pair.ask_to_leave(&store).unwrap();
    assert_eq!(store.get(&key(BACK, "online")).as_deref(), Some("0"));
    assert_eq!(store.get(&key(BACK, "state")).as_deref(), Some("5"));
    assert_eq!(pair.remove(&store, false).unwrap(), Removed::Waiting(End::Back));
    store.put(&key(BACK, "state"), "6");
    assert_eq!(pair.remove(&store, false).unwrap(), Removed::Waiting(End::Front));
    store.put(&key(FRONT, "state"), "6");
    assert_eq!(pair.remove(&store, false).unwrap(), Removed::Done);
    assert!(store.real.lock().unwrap().nodes.is_empty());
}

#[test]
fn force_asks_nobody() {
    let (store, pair) = made();
    store.put(&key(FRONT, "state"), "4");
    store.put("/local/domain/3/backend/vbd/7/51728/state", "4");
    assert_eq!(pair.remove(&store, true).unwrap(), Removed::Done);
    assert_eq!(store.real.lock().unwrap().nodes.len(), 1, "another device of the guest stays");
}

#[test]
fn a_peers_keys_are_bounded() {
    let (store, _) = made();
    let keys = Keys::new(&store, Transaction::NONE, FRONT, domain(7));
    let path = key(FRONT, "n");
    assert_eq!(keys.number("n", 0..=4_u32).unwrap(), None);
    for (value, number) in [("0", 0), ("4", 4), ("00000003", 3)] {
        store.put(&path, value);
        assert_eq!(keys.number("n", 0..=4_u32).unwrap(), Some(number), "{value}");
    }
    let wrong =
        ["5", "-1", "+1", " 1", "1 ", "", "0x1", "1.0", "4294967296", "99999999999999999999999"];
    for value in wrong {
        store.put(&path, value);
        let error = keys.number("n", 0..=4_u32).unwrap_err();
        let Error::Peer(fault) = &error else { panic!("{error:?}") };
        assert_eq!(fault.peer, domain(7).into());
        let said = error.to_string();
        assert!(said.contains(&path) && said.contains(value) && said.contains("from 0 to 4"));
    }
    store.put(&path, &"9".repeat(3000));
    assert!(keys.number("n", 0..=4_u32).unwrap_err().to_string().len() < 250);
    store.put(&path, "18446744073709551615");
    assert_eq!(keys.needed("n", 0..=u64::MAX).unwrap(), u64::MAX);
    assert!(keys.needed::<u32>("absent", 0..=4).unwrap_err().to_string().contains("missing"));
}

#[test]
fn flags_text_and_secrets() {
    let (store, pair) = made();
    let keys = Keys::new(&store, Transaction::NONE, FRONT, domain(7));
    assert!(!keys.flag("f").unwrap());
    store.put(&key(FRONT, "f"), "1");
    assert!(keys.flag("f").unwrap());
    assert_eq!(keys.said("f").unwrap(), Some(true));
    for (value, said) in [("0", false), ("00", false), ("2", true), ("4294967295", true)] {
        store.put(&key(FRONT, "f"), value);
        assert_eq!(keys.flag("f").unwrap(), said, "{value}");
    }
    for value in ["", "yes", "-1", "4294967296"] {
        store.put(&key(FRONT, "f"), value);
        assert!(keys.flag("f").is_err(), "{value}");
    }
    assert_eq!(keys.said("absent").unwrap(), None);
    store.put(&key(FRONT, "t"), "x86_64-abi");
    assert_eq!(keys.text("t", 16).unwrap().as_deref(), Some("x86_64-abi"));
    assert!(keys.text("t", 4).is_err());
    store.put(&key(FRONT, "t"), "a\u{1b}[2J");
    let error = keys.text("t", 16).unwrap_err().to_string();
    assert!(error.contains("\\x1b"), "control characters do not reach a terminal: {error}");
    *store.unreadable.lock().unwrap() = Some(key(FRONT, "f"));
    assert!(matches!(keys.flag("f"), Err(Error::Peer(_))));
    *store.unreadable.lock().unwrap() = Some(key(FRONT, "state"));
    assert_eq!(pair.seat(End::Back).peer_state(&store).unwrap(), State::Unknown);
}

#[test]
fn a_frontend_has_one_kind_of_disk_whatever_serves_it() {
    let pair = Pair::with_backend("vbd", "vbd3", 51712, domain(7), domain(3));
    assert_eq!(pair.front.directory, "/local/domain/7/device/vbd/51712");
    assert_eq!(pair.back.directory, "/local/domain/3/backend/vbd3/7/51712");
}
