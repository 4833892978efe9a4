//! A store that holds keys in this process and knows no permissions.

use std::cell::RefCell;
use std::collections::BTreeMap;

use hypervisor::store::{Ended, Permission, Store, StoreError, Transaction, Transactions};

/// Keys and values; what a transaction under way would go back to.
#[derive(Default)]
pub struct Keys(RefCell<State>);

#[derive(Default)]
struct State {
    keys: BTreeMap<String, Vec<u8>>,
    before: Option<BTreeMap<String, Vec<u8>>>,
    begun: u32,
    /// How many of the next transactions meet a conflict.
    conflicts: u8,
}

impl Keys {
    /// Sets a key without any ceremony.
    pub fn set(&self, path: &str, value: &[u8]) {
        self.0.borrow_mut().keys.insert(path.to_owned(), value.to_vec());
    }

    /// A key's value.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.0.borrow().keys.get(path).cloned()
    }

    /// Removes a key and all below it.
    pub fn clear(&self, path: &str) {
        let below = format!("{path}/");
        self.0.borrow_mut().keys.retain(|key, _| key != path && !key.starts_with(&below));
    }

    /// Has the next `times` transactions meet a conflict.
    pub fn conflict(&self, times: u8) {
        self.0.borrow_mut().conflicts = times;
    }

    /// All keys that do not lie below `directory`.
    #[must_use]
    pub fn outside(&self, directory: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.borrow();
        let outside = state.keys.iter().filter(|(key, _)| !key.starts_with(directory));
        outside.map(|(key, value)| (key.clone(), value.clone())).collect()
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
        state.before = Some(state.keys.clone());
        state.begun += 1;
        Ok(Transaction(state.begun))
    }

    fn end(&self, transaction: Transaction, commit: bool) -> Result<Ended, StoreError> {
        self.check(transaction);
        let mut state = self.0.borrow_mut();
        let before = state.before.take().expect("no transaction");
        let conflict = commit && state.conflicts > 0;
        if !commit || conflict {
            state.keys = before;
            state.conflicts = state.conflicts.saturating_sub(1);
        }
        Ok(if conflict { Ended::Conflict } else { Ended::Committed })
    }
}
