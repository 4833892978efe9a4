//! The store, as a domain sees it.
//!
//! A [`Domain`] has one connection, which it speaks through as a [`host::Domain`](crate::host::Domain).

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

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
}
