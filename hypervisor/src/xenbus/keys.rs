//! Reading keys that somebody else wrote.
//!
//! Every value is bounded in length and range where it is read, so that what comes out of here can
//! be used as it is. An error names the path, the value and what would have been allowed. A key
//! that its owner will not let us read is the owner's fault as well.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use core::ops::RangeInclusive;
use core::str::FromStr;

use crate::store::{Store, StoreError, Transaction};
use crate::xenbus::State;
use crate::{DomId, Error, PeerFault};

/// How much of a wrong value is shown, in bytes.
const SHOWN: usize = 40;
/// `EACCES`: the store's answer where the owner does not let us read.
const EACCES: i32 = 13;
/// Decimal digits of the largest 64-bit number.
const DIGITS: usize = 20;

/// A directory that another domain owns.
pub struct Keys<'a, S: ?Sized> {
    store: &'a S,
    within: Transaction,
    directory: &'a str,
    owner: DomId,
}

impl<'a, S: Store + ?Sized> Keys<'a, S> {
    /// The keys below `directory`, which `owner` writes.
    pub fn new(store: &'a S, within: Transaction, directory: &'a str, owner: DomId) -> Self {
        Self { store, within, directory, owner }
    }

    /// The value of `key` as it is, or `None` where there is none.
    ///
    /// # Errors
    ///
    /// The owner does not let us read it, or the store is gone.
    pub fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(key);
        match self.store.read(self.within, &path) {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(StoreError::Refused { errno: EACCES, .. }) => {
                Err(PeerFault::new(self.owner, "key may not be read", path).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The number at `key`, or `None` where there is no such key.
    ///
    /// # Errors
    ///
    /// It is no decimal number within `allowed`; or as [`bytes`](Self::bytes).
    pub fn number<T>(&self, key: &str, allowed: RangeInclusive<T>) -> Result<Option<T>, Error>
    where
        T: Copy + Display + PartialOrd + FromStr,
    {
        let Some(value) = self.bytes(key)? else { return Ok(None) };
        match decimal::<T>(&value) {
            Some(number) if allowed.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = format!("a number from {} to {}", allowed.start(), allowed.end());
                Err(self.wrong(key, &value, &wanted))
            }
        }
    }

    /// The number at `key`, which must be there.
    ///
    /// # Errors
    ///
    /// There is no such key; or as [`number`](Self::number).
    pub fn needed<T>(&self, key: &str, allowed: RangeInclusive<T>) -> Result<T, Error>
    where
        T: Copy + Display + PartialOrd + FromStr,
    {
        match self.number(key, allowed)? {
            Some(number) => Ok(number),
            None => Err(PeerFault::new(self.owner, "key is missing", self.path(key)).into()),
        }
    }

    /// Whether `key` says yes, which is 1 and, as Linux reads it, every number but 0. `None` where there
    /// is no such key.
    ///
    /// # Errors
    ///
    /// It says no number; or as [`bytes`](Self::bytes).
    pub fn said(&self, key: &str) -> Result<Option<bool>, Error> {
        Ok(self.number(key, 0..=u32::MAX)?.map(|said| said != 0))
    }

    /// Whether `key` says yes. A missing key says no, as the headers have it.
    ///
    /// # Errors
    ///
    /// As for [`said`](Self::said).
    pub fn flag(&self, key: &str) -> Result<bool, Error> {
        Ok(self.said(key)?.unwrap_or(false))
    }

    /// The text at `key`, of at most `longest` bytes, or `None` where there is no such key.
    ///
    /// # Errors
    ///
    /// It is longer, or not printable ASCII; or as [`bytes`](Self::bytes).
    pub fn text(&self, key: &str, longest: usize) -> Result<Option<String>, Error> {
        let Some(value) = self.bytes(key)? else { return Ok(None) };
        let printable = value.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
        match core::str::from_utf8(&value) {
            Ok(text) if printable && text.len() <= longest => Ok(Some(text.to_owned())),
            _ => Err(self.wrong(key, &value, &format!("printable text of up to {longest} bytes"))),
        }
    }

    /// The state of the end whose directory this is. One that we may not read is one that we cannot
    /// talk to.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn state(&self) -> Result<State, Error> {
        match self.bytes("state") {
            Ok(value) => Ok(value.map_or(State::Unknown, |value| State::parse(&value))),
            Err(Error::Peer(_)) => Ok(State::Unknown),
            Err(error) => Err(error),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}/{key}", self.directory)
    }

    fn wrong(&self, key: &str, value: &[u8], wanted: &str) -> Error {
        let shown = value.get(..SHOWN).unwrap_or(value).escape_ascii();
        let more = if value.len() > SHOWN { "..." } else { "" };
        let said = format!("{} is '{shown}{more}', not {wanted}", self.path(key));
        PeerFault::new(self.owner, "key is out of range", said).into()
    }
}

/// A number as the store holds them: decimal digits and nothing else.
pub fn decimal<T: FromStr>(value: &[u8]) -> Option<T> {
    if value.is_empty() || value.len() > DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(value).ok()?.parse().ok()
}

/// Writes `value` at `key` below `directory`.
///
/// # Errors
///
/// The store refuses or is gone.
pub fn write<S: Store + ?Sized>(
    store: &S,
    within: Transaction,
    directory: &str,
    key: &str,
    value: impl Display,
) -> Result<(), StoreError> {
    store.write(within, &format!("{directory}/{key}"), value.to_string().as_bytes())
}
