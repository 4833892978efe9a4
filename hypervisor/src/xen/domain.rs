//! The domain that this process runs in.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use crate::store::{Store as _, StoreError, Transaction};
use crate::xenstore::Client;
use crate::{ConfigError, DomId, Error, HostError};

use super::granting::Table;
use super::node::{GNTALLOC, GNTDEV, Node};
use super::{about, store};

/// The domain that this process runs in, on real Xen.
///
/// Clones are the same: one connection to the store, one open file of each device. Files are opened
/// when they are first needed; [`prepare_using`](Self::prepare_using) and
/// [`prepare_granting`](Self::prepare_granting) do it at once, for a process that is about to give up
/// the right to.
#[derive(Clone, Debug)]
pub struct Domain {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: DomId,
    store: Client,
    gntdev: OnceLock<Arc<OwnedFd>>,
    gntalloc: OnceLock<Arc<OwnedFd>>,
    granted: Table,
}

impl Domain {
    /// Finds out who we are, and connects to the store.
    ///
    /// # Errors
    ///
    /// The store cannot be reached, or does not say who we are; the error says what to do.
    pub fn open() -> Result<Self, Error> {
        let store = store::connect()?;
        let id = own_id(&store)?;
        let inner = Inner {
            id,
            store,
            gntdev: OnceLock::new(),
            gntalloc: OnceLock::new(),
            granted: Table::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> DomId {
        self.inner.id
    }

    /// Pages that this process has granted and not taken back.
    #[must_use]
    pub fn pages_granted(&self) -> usize {
        self.inner.granted.len()
    }

    /// Opens what mapping and copying need.
    ///
    /// # Errors
    ///
    /// The device's node is missing, or not for us.
    pub fn prepare_using(&self) -> Result<(), HostError> {
        self.gntdev().map(drop)
    }

    /// Opens what granting needs.
    ///
    /// # Errors
    ///
    /// The device's node is missing, or not for us.
    pub fn prepare_granting(&self) -> Result<(), HostError> {
        self.gntalloc().map(drop)
    }

    pub(crate) fn store(&self) -> &Client {
        &self.inner.store
    }

    pub(super) fn gntdev(&self) -> Result<Arc<OwnedFd>, HostError> {
        opened(&self.inner.gntdev, GNTDEV)
    }

    pub(super) fn gntalloc(&self) -> Result<Arc<OwnedFd>, HostError> {
        opened(&self.inner.gntalloc, GNTALLOC)
    }

    pub(super) fn granted(&self) -> &Table {
        &self.inner.granted
    }
}

/// Another thread may open it at the same moment; then theirs is used.
fn opened(cell: &OnceLock<Arc<OwnedFd>>, node: Node) -> Result<Arc<OwnedFd>, HostError> {
    if let Some(open) = cell.get() {
        return Ok(Arc::clone(open));
    }
    let open = Arc::new(node.open()?);
    Ok(Arc::clone(cell.get_or_init(|| open)))
}

/// The store says who we are. Where nothing was written for the control domain, that is who we are.
fn own_id(store: &Client) -> Result<DomId, Error> {
    let value = match store.read(Transaction::NONE, "domid") {
        Ok(value) => value,
        Err(StoreError::Missing(_)) if about::is_control() => return Ok(DomId::ZERO),
        Err(StoreError::Missing(_)) => {
            let problem = "does not exist: the toolstack that made this domain should have \
                           written it (in domain 0, `xen-init-dom0` does)";
            return Err(ConfigError::new("store key", "domid", problem).into());
        }
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&value);
    let id = text.trim().parse().ok().and_then(DomId::new);
    id.ok_or_else(|| {
        ConfigError::new("store key 'domid' with value", &text, "is no domain's number").into()
    })
}
