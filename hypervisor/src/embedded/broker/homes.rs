//! What the store knows of each domain from its first moment on.
//!
//! ```text
//!   /local/domain/<domid>                 the domain's own: it may write below
//!   /local/domain/<domid>/name            the rest is the hypervisor's, and for it to read
//!                        /domid
//!                        /memory/target           in KiB
//!                        /memory/static-max       in KiB
//!                        /cpu/<n>/availability    "online"
//! ```
//!
//! Source: `docs/misc/xenstore-paths.pandoc` (RELEASE-4.17). Introduction and release fire
//! `@introduceDomain` and `@releaseDomain`.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::domain::DomainSpec;
use crate::store::{Permission, Store as _, StoreError, Transaction, transact};
use crate::xenstore::Client;
use crate::xenstore::server::Service;
use crate::{DomId, Error, HostError};

/// The store, and our way to write to it.
#[derive(Debug)]
pub(crate) struct Homes {
    service: Service,
    control: Client,
}

impl Homes {
    /// In that store.
    pub(crate) fn new(service: Service) -> Result<Self, Error> {
        let control = service.handle().client(DomId::ZERO)?;
        Ok(Self { service, control })
    }

    /// A connection to the store for `domain`.
    pub(crate) fn connection(&self, domain: DomId) -> Result<OwnedFd, Error> {
        let failed = |error| HostError::from_io("connect to the store", &error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        self.service.handle().add_connection(ours, domain)?;
        Ok(OwnedFd::from(theirs))
    }

    /// Makes a new domain's home and introduces it.
    pub(crate) fn make(&self, domain: DomId, spec: &DomainSpec) -> Result<(), Error> {
        transact(&self.control, |within| self.write(within, domain, spec))?;
        self.service.handle().introduce(domain);
        Ok(())
    }

    fn write(
        &self,
        within: Transaction,
        domain: DomId,
        spec: &DomainSpec,
    ) -> Result<(), StoreError> {
        let home = home(domain);
        // Whatever a domain of that number left behind.
        self.control.remove(within, &home)?;
        self.control.write(within, &home, b"")?;
        let own = Permission { domain, read: false, write: false };
        self.control.set_permissions(within, &home, &[own])?;
        let put = |path: &str, value: String| {
            let path = format!("{home}/{path}");
            self.control.write(within, &path, value.as_bytes())?;
            self.let_read(within, domain, &path)
        };
        put("name", spec.name.clone())?;
        put("domid", domain.to_string())?;
        put("memory", String::new())?;
        put("memory/target", spec.memory_kib.to_string())?;
        put("memory/static-max", spec.memory_kib.to_string())?;
        put("cpu", String::new())?;
        for cpu in 0..spec.vcpus {
            put(&format!("cpu/{cpu}"), String::new())?;
            put(&format!("cpu/{cpu}/availability"), "online".to_owned())?;
        }
        Ok(())
    }

    fn let_read(&self, within: Transaction, domain: DomId, path: &str) -> Result<(), StoreError> {
        let control = Permission { domain: DomId::ZERO, read: false, write: false };
        let reader = Permission { domain, read: true, write: false };
        self.control.set_permissions(within, path, &[control, reader])
    }

    /// Tells the domain its new memory target.
    pub(crate) fn set_target(&self, domain: DomId, target_kib: u64) {
        let path = format!("{}/memory/target", home(domain));
        let value = target_kib.to_string();
        if let Err(error) = self.control.write(Transaction::NONE, &path, value.as_bytes()) {
            tracing::warn!("domain {domain} is not told its memory target: {error}");
        }
    }

    /// A domain is no more.
    pub(crate) fn remove(&self, domain: DomId) {
        if let Err(error) = self.control.remove(Transaction::NONE, &home(domain)) {
            tracing::warn!("the home of domain {domain} stays in the store: {error}");
        }
        self.service.handle().release(domain);
    }
}

fn home(domain: DomId) -> String {
    format!("/local/domain/{domain}")
}
