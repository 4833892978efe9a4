//! The store: xenstored's socket where it runs in this domain, else the kernel's connection to it.
//!
//! The kernel's device `/dev/xen/xenbus` speaks the same protocol as the socket. Watches are kept
//! apart for each open file; requests of all files, and of the kernel itself, go through one ring
//! page one after the other, and a message is 4096 bytes at most with its header.
//!
//! A [`Domain`] has one connection, which it speaks through as a [`host::Domain`](crate::host::Domain).

use std::path::Path;

use crate::xenstore::Client;
use crate::{ConfigError, DomId, Error, HostError};

use super::about;
use super::domain::Domain;
use super::node::XENBUS;

/// Where xenstored listens in its own domain.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// The device of kernels that make no node in `/dev`.
const XENFS: &str = "/proc/xen/xenbus";

/// Connects to the store.
pub(super) fn connect() -> Result<Client, HostError> {
    for socket in SOCKETS {
        // One that xenstored left behind refuses; then the device may still do.
        if let Ok(client) = Client::connect(socket) {
            return Ok(client);
        }
    }
    if !Path::new(XENBUS.path).exists() && Path::new(XENFS).exists() {
        return Client::from_device(super::node::Node { path: XENFS, ..XENBUS }.open()?.into());
    }
    let device = XENBUS.open().map_err(|error| {
        let doing = format!("{}; xenstored does not listen in {} either", error.doing, SOCKETS[0]);
        HostError::new(doing, error.errno)
    })?;
    Client::from_device(device.into())
}

impl Domain {
    /// Another connection to the store for this domain, with watches of its own.
    ///
    /// # Errors
    ///
    /// The store cannot be reached any more.
    pub fn open_store(&self) -> Result<Client, HostError> {
        connect()
    }

    /// A connection to the store that speaks for the control domain, as a toolstack does: it may
    /// write everywhere.
    ///
    /// # Errors
    ///
    /// This is not the control domain, or the store cannot be reached any more.
    pub fn open_control_store(&self) -> Result<Client, Error> {
        if self.id() != DomId::ZERO && !about::is_control() {
            let problem = "is not the control domain and cannot make devices; have them made there, \
                           as with `xl block-attach`";
            return Err(ConfigError::new("domain", self.id(), problem).into());
        }
        Ok(connect()?)
    }
}
