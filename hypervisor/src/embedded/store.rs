//! The store, as a domain sees it.
//!
//! A domain has one connection of its own, which the traits below speak through; every clone of the
//! [`Domain`] shares it, and with it the watches and what they report. Whoever wants changes
//! for itself opens [another](Domain::open_store).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::store::{
    Changed, Ended, Permission, Store, StoreError, Transaction, Transactions, Watches,
};
use crate::xenstore::Client;
use crate::{Error, HostError};

use super::broker::message::Request;
use super::session::{Domain, unexpected};

impl Domain {
    /// Another connection to the store for this domain, with watches of its own.
    ///
    /// # Errors
    ///
    /// The domain has ended, or has too many connections.
    pub fn open_store(&self) -> Result<Client, HostError> {
        let doing = || "connect to the store".to_owned();
        let (_, beside) = self.ask(&Request::OpenStore, &doing)?;
        let [socket] = <[OwnedFd; 1]>::try_from(beside).map_err(|_| unexpected(doing()))?;
        Client::from_stream(UnixStream::from(socket))
    }

    /// A connection to the store that speaks for the control domain, as a toolstack does: it may
    /// write everywhere.
    ///
    /// # Errors
    ///
    /// The store cannot be reached.
    pub fn open_control_store(&self) -> Result<Client, Error> {
        Ok(Client::connect(self.place().store_socket())?)
    }

    /// What polls readable when [`changed`](Watches::changed) may have something to say.
    #[must_use]
    pub fn changes(&self) -> BorrowedFd<'_> {
        self.store().as_fd()
    }
}

impl Store for Domain {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        self.store().read(within, path)
    }

    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store().write(within, path, value)
    }

    fn list(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        self.store().list(within, path)
    }

    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        self.store().remove(within, path)
    }

    fn permissions(&self, within: Transaction, path: &str) -> Result<Vec<Permission>, StoreError> {
        self.store().permissions(within, path)
    }

    fn set_permissions(
        &self,
        within: Transaction,
        path: &str,
        permissions: &[Permission],
    ) -> Result<(), StoreError> {
        self.store().set_permissions(within, path, permissions)
    }
}

impl Transactions for Domain {
    fn begin(&self) -> Result<Transaction, StoreError> {
        self.store().begin()
    }

    fn end(&self, transaction: Transaction, commit: bool) -> Result<Ended, StoreError> {
        self.store().end(transaction, commit)
    }
}

impl Watches for Domain {
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.store().watch(path, token)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.store().unwatch(path, token)
    }

    fn changed(&self) -> Result<Option<Changed>, StoreError> {
        self.store().changed()
    }
}
