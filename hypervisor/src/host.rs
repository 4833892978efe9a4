//! A domain that a Linux process runs in, whatever hypervisor stands behind it.
//!
//! The one bound that programs are generic over:
//!
//! ```
//! use hypervisor::find::{self, Found};
//! use hypervisor::host::Domain;
//!
//! fn serve<D: Domain>(domain: &D) -> Result<(), hypervisor::Error> {
//!     let store = domain.open_store()?;
//!     # drop(store);
//!     Ok(())
//! }
//!
//! fn start(found: &Found) -> Result<(), hypervisor::Error> {
//!     match found {
//!         Found::Xen(domain) => serve(domain),
//!         Found::Embedded(found) => serve(&found.join(&hypervisor::domain::DomainSpec::new("disk"))?),
//!     }
//! }
//! ```

use std::os::fd::{AsFd, BorrowedFd};

use crate::event::Events;
use crate::memory::{Granting, Using};
use crate::store::{
    Changed, Ended, Permission, Store, StoreError, Transaction, Transactions, Watches,
};
use crate::xenstore::Client;
use crate::{DomId, Error, HostError};

/// A domain that this process runs in. Clones are the same domain.
///
/// It has one connection to the store ([`store`](Self::store)), which its own [`Store`],
/// [`Transactions`] and [`Watches`] speak through; every clone shares it, and with it the watches and
/// what they report. Whoever wants changes for itself opens [another](Self::open_store).
pub trait Domain:
    Using + Granting + Events<Channel: AsFd> + Clone + std::fmt::Debug + Send + Sync + 'static
{
    /// Its number.
    fn id(&self) -> DomId;

    /// Its connection to the store.
    fn store(&self) -> &Client;

    /// Another connection to the store for this domain, with watches of its own.
    ///
    /// # Errors
    ///
    /// The store cannot be reached.
    fn open_store(&self) -> Result<Client, HostError>;

    /// A connection to the store that may write everywhere, as a toolstack's.
    ///
    /// # Errors
    ///
    /// This domain may not, or the store cannot be reached.
    fn open_control_store(&self) -> Result<Client, Error>;

    /// What polls readable when [`Watches::changed`] of the domain itself may have something to say.
    fn changes(&self) -> BorrowedFd<'_> {
        self.store().as_fd()
    }
}

impl<D: Domain> Store for D {
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

impl<D: Domain> Transactions for D {
    fn begin(&self) -> Result<Transaction, StoreError> {
        self.store().begin()
    }

    fn end(&self, transaction: Transaction, commit: bool) -> Result<Ended, StoreError> {
        self.store().end(transaction, commit)
    }
}

impl<D: Domain> Watches for D {
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

#[cfg(feature = "embedded")]
impl Domain for crate::embedded::Domain {
    fn id(&self) -> DomId {
        self.id()
    }

    fn store(&self) -> &Client {
        self.store()
    }

    fn open_store(&self) -> Result<Client, HostError> {
        self.open_store()
    }

    fn open_control_store(&self) -> Result<Client, Error> {
        self.open_control_store()
    }
}

#[cfg(feature = "xen")]
impl Domain for crate::xen::Domain {
    fn id(&self) -> DomId {
        self.id()
    }

    fn store(&self) -> &Client {
        self.store()
    }

    fn open_store(&self) -> Result<Client, HostError> {
        self.open_store()
    }

    fn open_control_store(&self) -> Result<Client, Error> {
        self.open_control_store()
    }
}
