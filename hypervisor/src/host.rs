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
use crate::store::{Transactions, Watches};
use crate::xenstore::Client;
use crate::{DomId, Error, HostError};

/// A domain that this process runs in. Clones are the same domain.
pub trait Domain:
    Using
    + Granting
    + Events<Channel: AsFd>
    + Transactions
    + Watches
    + Clone
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// Its number.
    fn id(&self) -> DomId;

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
    fn changes(&self) -> BorrowedFd<'_>;
}

#[cfg(feature = "embedded")]
impl Domain for crate::embedded::Domain {
    fn id(&self) -> DomId {
        self.id()
    }

    fn open_store(&self) -> Result<Client, HostError> {
        self.open_store()
    }

    fn open_control_store(&self) -> Result<Client, Error> {
        self.open_control_store()
    }

    fn changes(&self) -> BorrowedFd<'_> {
        self.changes()
    }
}

#[cfg(feature = "xen")]
impl Domain for crate::xen::Domain {
    fn id(&self) -> DomId {
        self.id()
    }

    fn open_store(&self) -> Result<Client, HostError> {
        self.open_store()
    }

    fn open_control_store(&self) -> Result<Client, Error> {
        self.open_control_store()
    }

    fn changes(&self) -> BorrowedFd<'_> {
        self.changes()
    }
}
