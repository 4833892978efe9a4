//! One end's part in the handshake.
//!
//! What an end offers and the state that promises it are written in one transaction, so that the
//! peer never sees a promise without its keys, and an end whose directory the toolstack has removed
//! meanwhile is not brought back to life by its own last words.

use alloc::string::String;

use crate::store::{Store, StoreError, Transaction, Transactions, transact};
use crate::xenbus::{End, Keys, State, keys};
use crate::{DomId, Error};

/// What became of an attempt to publish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an end that is gone must be let go"]
pub enum Published {
    /// The keys and the state stand in the store.
    Done,
    /// The toolstack has removed our directory. Nothing was written.
    Gone,
    /// Our end is in another state than that we may go on to the one asked for: the toolstack
    /// asked for something meanwhile. Nothing was written.
    Refused(State),
}

/// One end's place at a device: its own directory and the one opposite.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seat {
    /// Which end sits here.
    pub end: End,
    /// Our directory.
    pub own: String,
    /// The peer's directory.
    pub opposite: String,
    /// The peer.
    pub peer: DomId,
}

impl Seat {
    /// The place of `end` at a device whose directories are `own` and, of `peer`, `opposite`.
    #[must_use]
    pub const fn new(end: End, own: String, opposite: String, peer: DomId) -> Self {
        Self { end, own, opposite, peer }
    }

    /// The peer's keys.
    pub fn peer_keys<'a, S: Store + ?Sized>(
        &'a self,
        store: &'a S,
        within: Transaction,
    ) -> Keys<'a, S> {
        Keys::new(store, within, &self.opposite, self.peer)
    }

    /// How far the peer has come.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn peer_state<S: Store + ?Sized>(&self, store: &S) -> Result<State, Error> {
        self.peer_keys(store, Transaction::NONE).state()
    }

    /// How far we have come, as the store has it.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn own_state<S: Store + ?Sized>(
        &self,
        store: &S,
        within: Transaction,
    ) -> Result<State, StoreError> {
        match store.read(within, &alloc::format!("{}/state", self.own)) {
            Ok(value) => Ok(State::parse(&value)),
            Err(StoreError::Missing(_)) => Ok(State::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Writes `offered`, key by key, and goes on to `next`, at once or not at all.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn publish<S: Transactions + ?Sized>(
        &self,
        store: &S,
        offered: &[(&str, String)],
        next: State,
    ) -> Result<Published, StoreError> {
        transact(store, |within| {
            let now = self.own_state(store, within)?;
            if now == State::Unknown {
                return Ok(Published::Gone);
            }
            if now != next && !now.may_become(self.end, next) {
                return Ok(Published::Refused(now));
            }
            for (key, value) in offered {
                keys::write(store, within, &self.own, key, value)?;
            }
            keys::write(store, within, &self.own, "state", next.number())?;
            Ok(Published::Done)
        })
    }

    /// Says in our directory why we gave up, where toolstacks look for it (`error`).
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn complain<S: Transactions + ?Sized>(
        &self,
        store: &S,
        why: &str,
    ) -> Result<(), StoreError> {
        transact(store, |within| {
            if self.own_state(store, within)? != State::Unknown {
                keys::write(store, within, &self.own, "error", why)?;
            }
            Ok(())
        })
    }
}
