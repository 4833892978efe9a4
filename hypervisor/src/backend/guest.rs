//! Who is to be served.
//!
//! A guest is named or numbered. A name is waited for, and the next guest of that name is served
//! when one has gone; a number is one domain's and no other's, and must be there.

use std::fmt;
use std::str::FromStr;

use crate::store::{Store, StoreError, Transaction};
use crate::xenbus::Keys;
use crate::{ConfigError, DomId, Error};

/// The longest name a domain can have in the store.
const LONGEST_NAME: usize = 256;
/// The most domains looked through in search of one.
const MOST: usize = DomId::FIRST_RESERVED as usize;

/// Which guest is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whichever domain has this name.
    Name(String),
    /// This one.
    Id(DomId),
}

/// A domain that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its number.
    pub id: DomId,
    /// Its name.
    pub name: String,
}

impl FromStr for Wanted {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text.is_empty() || text.len() > LONGEST_NAME {
            let why = "a domain's name has 1 to 256 characters";
            return Err(ConfigError::new("domain", text, why));
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Self::Name(text.to_owned()));
        }
        match text.parse().ok().and_then(DomId::new) {
            Some(id) => Ok(Self::Id(id)),
            None => Err(ConfigError::new("domain", text, "domains are numbered from 0 to 32751")),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (domain {})", self.name, self.id)
    }
}

impl Wanted {
    /// The guest, if it is there.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn find<S: Store + ?Sized>(&self, store: &S) -> Result<Option<Guest>, Error> {
        Ok(all(store)?.into_iter().find(|guest| match self {
            Self::Name(name) => guest.name == *name,
            Self::Id(id) => guest.id == *id,
        }))
    }

    /// The guest, which must be there.
    ///
    /// # Errors
    ///
    /// It is not; the error names those that are. Or the store is gone.
    pub fn demand<S: Store + ?Sized>(&self, store: &S) -> Result<Guest, Error> {
        if let Some(guest) = self.find(store)? {
            return Ok(guest);
        }
        let there: Vec<String> =
            all(store)?.iter().map(|g| format!("{} {}", g.id, g.name)).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let problem = format!(
            "there is no such domain (there are: {there}); a domain that is yet to come can be \
             waited for by its name"
        );
        Err(ConfigError::new("--domain", self, problem).into())
    }
}

/// Every domain that the store knows by name.
fn all<S: Store + ?Sized>(store: &S) -> Result<Vec<Guest>, Error> {
    let numbers = match store.list(Transaction::NONE, "/local/domain") {
        Ok(numbers) => numbers,
        Err(StoreError::Missing(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut guests = Vec::new();
    for id in numbers.iter().take(MOST).filter_map(|n| n.parse().ok().and_then(DomId::new)) {
        // A name that is none belongs to nobody who can be asked for.
        if let Some(name) = name(store, id)? {
            guests.push(Guest { id, name });
        }
    }
    guests.sort_by_key(|guest| guest.id);
    Ok(guests)
}

/// A domain's name, where it has one that can be shown.
///
/// # Errors
///
/// The store is gone.
pub fn name<S: Store + ?Sized>(store: &S, id: DomId) -> Result<Option<String>, Error> {
    let home = format!("/local/domain/{id}");
    match Keys::new(store, Transaction::NONE, &home, id).text("name", LONGEST_NAME) {
        Err(Error::Peer(_)) => Ok(None),
        name => name,
    }
}

/// Whether a domain is still there.
///
/// # Errors
///
/// The store is gone.
pub fn lives<S: Store + ?Sized>(store: &S, id: DomId) -> Result<bool, Error> {
    match store.read(Transaction::NONE, &format!("/local/domain/{id}")) {
        Ok(_) => Ok(true),
        Err(StoreError::Missing(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
