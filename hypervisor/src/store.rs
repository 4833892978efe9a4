//! The store: a small tree of keys in which two ends of a device find each other.
//!
//! Source: `docs/misc/xenstore.txt` and `io/xs_wire.h`. Values are bytes; keys are paths, absolute
//! or relative to the domain's own home `/local/domain/<domid>`. What lies under a peer's home was
//! written by that peer and is not to be trusted.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{DomId, HostError};

/// A transaction's number; [`Transaction::NONE`] stands for "in no transaction".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Transaction(pub u32);

impl Transaction {
    /// The operation stands alone.
    pub const NONE: Self = Self(0);
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a transaction that met another's change has done nothing"]
pub enum Ended {
    /// All of it took effect at once.
    Committed,
    /// Somebody changed what it had read or written (`EAGAIN`): none of it took effect.
    Conflict,
}

/// Somebody changed a watched path or something below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// What changed; or the watched path itself, on registration. Changes may be coalesced, so read
    /// what is there now and conclude nothing from how often this came.
    pub path: String,
    /// What the watch was registered with.
    pub token: String,
}

/// Who may do what with a key (`XS_SET_PERMS`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Permission {
    /// Whom it is about. In a list's first entry, the owner, who may do everything.
    pub domain: DomId,
    /// Whether it may read. In the first entry: whether anybody not listed may.
    pub read: bool,
    /// Whether it may write, likewise.
    pub write: bool,
}

/// An operation on the store that was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such key (`ENOENT`).
    #[error("store: {0} does not exist")]
    Missing(String),
    /// The store refused (`EACCES`, `EINVAL`, `E2BIG`, `ENOSPC`, ...).
    #[error("store: {path}: {}", HostError::new(*.operation, *.errno))]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// Of which key.
        path: String,
        /// The store's reason, as a positive `errno` value.
        errno: i32,
    },
    /// The store is not there any more, or speaks nonsense.
    #[error(transparent)]
    Lost(#[from] HostError),
}

impl From<StoreError> for crate::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing(path) => HostError::new(alloc::format!("read {path}"), 2).into(),
            StoreError::Refused { operation, path, errno } => {
                HostError::new(alloc::format!("{operation} {path} in the store"), errno).into()
            }
            StoreError::Lost(error) => error.into(),
        }
    }
}

/// Keys and values.
pub trait Store {
    /// The value of `path`.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError>;

    /// Sets the value of `path`, making it and its parents where they are not there.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError>;

    /// The names of `path`'s children.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn list(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError>;

    /// Removes `path` and all below it. That it was not there is no error.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError>;

    /// Who may do what with `path`; the first entry names its owner.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn permissions(&self, within: Transaction, path: &str) -> Result<Vec<Permission>, StoreError>;

    /// Replaces `path`'s permissions.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn set_permissions(
        &self,
        within: Transaction,
        path: &str,
        permissions: &[Permission],
    ) -> Result<(), StoreError>;
}

/// Several operations that take effect at once or not at all.
pub trait Transactions: Store {
    /// Begins one.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn begin(&self) -> Result<Transaction, StoreError>;

    /// Ends one, for good (`commit`) or without effect.
    ///
    /// # Errors
    ///
    /// See [`StoreError`]; a conflict is none.
    fn end(&self, transaction: Transaction, commit: bool) -> Result<Ended, StoreError>;
}

/// Being told of changes.
///
/// Under `std`, what is waited for in an event loop also is a file descriptor (`AsFd`) that polls
/// readable when [`changed`](Self::changed) may have something to say.
pub trait Watches {
    /// Asks to be told, with `token`, of changes to `path` and all below it, and at once a first
    /// time.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError>;

    /// Asks no longer.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError>;

    /// The next change that was not yet told, without waiting for one.
    ///
    /// # Errors
    ///
    /// The store is gone.
    fn changed(&self) -> Result<Option<Changed>, StoreError>;
}

/// How often a transaction is tried. Conflicts are rare between honest parties, but a peer that
/// writes without pause to what a transaction touches could cause them for ever.
const TRIES: u32 = 1000;

/// `EAGAIN`: the store's word for a transaction that met a conflict.
const EAGAIN: i32 = 11;

/// Does `work` in a transaction, again and again until no other change came between.
///
/// # Errors
///
/// What `work` or the store gave; the transaction then took no effect. `EAGAIN` where every one of
/// a thousand attempts met a conflict.
pub fn transact<S, T, E>(
    store: &S,
    mut work: impl FnMut(Transaction) -> Result<T, E>,
) -> Result<T, E>
where
    S: Transactions + ?Sized,
    E: From<StoreError>,
{
    for _ in 0..TRIES {
        let transaction = store.begin()?;
        match work(transaction) {
            Ok(done) => {
                if store.end(transaction, true)? == Ended::Committed {
                    return Ok(done);
                }
            }
            Err(error) => {
                // The work's own error says more than that the transaction could not be ended.
                let _ = store.end(transaction, false);
                return Err(error);
            }
        }
    }
    let path = String::from("what others change without pause");
    Err(StoreError::Refused { operation: "change", path, errno: EAGAIN }.into())
}
