//! A store that holds keys in this process and knows no permissions.

use std::cell::RefCell;
use std::collections::BTreeMap;

use hypervisor::store::{Ended, Permission, Store, StoreError, Transaction, Transactions};

/// Keys and values, and what a transaction under way would have to undo.
#[derive(Default)]
pub struct Keys(RefCell<State>);

#[derive(Default)]
struct State {
    keys: BTreeMap<String, Vec<u8>>,
    /// What every changed key was before, oldest change first.
    before: Option<Vec<(String, Option<Vec<u8>>)>>,
    begun: u32,
    /// How many of the next transactions meet a conflict.
    conflicts: u8,
    /// The one directory that may be changed, where only one may.
    only: Option<String>,
}

impl State {
    fn set(&mut self, path: &str, value: Option<&[u8]>) {
        let may = self.only.as_ref().is_none_or(|only| path.starts_with(only.as_str()));
        assert!(may, "{path} is not its own");
        let before = match value {
            Some(value) => self.keys.insert(path.to_owned(), value.to_vec()),
            None => self.keys.remove(path),
        };
        if let Some(changes) = &mut self.before {
            changes.push((path.to_owned(), before));
        }
    }
}

impl Keys {
    /// Sets a key without any ceremony.
    pub fn set(&self, path: &str, value: &[u8]) {
        self.0.borrow_mut().set(path, Some(value));
    }

    /// A key's value.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.0.borrow().keys.get(path).cloned()
    }

    /// Removes a key and all below it.
    pub fn clear(&self, path: &str) {
        let mut state = self.0.borrow_mut();
        let all: Vec<String> = state
            .keys
            .range(path.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(path))
            .filter(|key| matches!(key.as_bytes().get(path.len()), None | Some(b'/')))
            .cloned()
            .collect();
        for key in all {
            state.set(&key, None);
        }
    }

    /// Has the next `times` transactions meet a conflict.
    pub fn conflict(&self, times: u8) {
        self.0.borrow_mut().conflicts = times;
    }

    /// From now on nothing may be changed but what lies in `directory`, where there is one.
    pub fn only(&self, directory: Option<&str>) {
        self.0.borrow_mut().only = directory.map(str::to_owned);
    }

    fn check(&self, within: Transaction) {
        let state = self.0.borrow();
        let open = state.before.as_ref().map_or(0, |_| state.begun);
        assert!(within == Transaction::NONE || within.0 == open, "no such transaction");
    }
}

impl Store for Keys {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        self.check(within);
        self.get(path).ok_or_else(|| StoreError::Missing(path.to_owned()))
    }

    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.check(within);
        assert!(value.len() <= 2048, "a value that a store would refuse");
        self.set(path, value);
        Ok(())
    }

    fn list(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        self.check(within);
        let below = format!("{path}/");
        let state = self.0.borrow();
        let mut names: Vec<String> = state
            .keys
            .keys()
            .filter_map(|key| key.strip_prefix(&below)?.split('/').next().map(str::to_owned))
            .collect();
        names.dedup();
        Ok(names)
    }

    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        self.check(within);
        self.clear(path);
        Ok(())
    }

    fn permissions(&self, _: Transaction, _: &str) -> Result<Vec<Permission>, StoreError> {
        Ok(Vec::new())
    }

    fn set_permissions(&self, _: Transaction, _: &str, _: &[Permission]) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Transactions for Keys {
    fn begin(&self) -> Result<Transaction, StoreError> {
        let mut state = self.0.borrow_mut();
        assert!(state.before.is_none(), "a transaction inside another");
        state.before = Some(Vec::new());
        state.begun += 1;
        Ok(Transaction(state.begun))
    }

    fn end(&self, transaction: Transaction, commit: bool) -> Result<Ended, StoreError> {
        self.check(transaction);
        let mut state = self.0.borrow_mut();
        let before = state.before.take().expect("no transaction");
        let conflict = commit && state.conflicts > 0;
        if !commit || conflict {
            for (path, value) in before.into_iter().rev() {
                state.set(&path, value.as_deref());
            }
            state.conflicts = state.conflicts.saturating_sub(1);
        }
        Ok(if conflict { Ended::Conflict } else { Ended::Committed })
    }
}
