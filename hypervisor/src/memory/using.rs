//! The using side: map or copy pages that another domain has granted.

use crate::memory::{Access, GrantStatus, Memory};
use crate::{DomId, GrantRef, HostError, PeerFault};

/// A domain that can use what others have granted to it.
pub trait Using {
    /// Granted pages, side by side in our address space in the order in which they were named.
    /// Dropping it unmaps them.
    type Mapping: Memory + Send + Sync + 'static;

    /// Maps the pages that `peer` granted as `grefs`, all or none.
    ///
    /// # Errors
    ///
    /// [`MapFailed::Refused`] names the first reference that was refused; whatever of the batch
    /// had been mapped is unmapped again (advisories 361, 362, 365).
    fn map(
        &self,
        peer: DomId,
        grefs: &[GrantRef],
        access: Access,
    ) -> Result<Self::Mapping, MapFailed>;

    /// Copies between pages that `peer` granted and our own memory, each operation on its own.
    ///
    /// Every operation's [`CopyOp::status`] is set, whatever the others' are.
    ///
    /// # Errors
    ///
    /// The batch as a whole could not be asked for; then no status means anything.
    fn copy(&self, peer: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), HostError>;
}

/// Which way a copy goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the peer's page into our memory.
    FromPeer,
    /// From our memory into the peer's page.
    ToPeer,
}

/// One copy within one granted page.
pub struct CopyOp<'a> {
    /// The page.
    pub gref: GrantRef,
    /// Where in the page the bytes lie; `offset` and the length stay within [`crate::PAGE_SIZE`].
    pub offset: u16,
    /// Which way.
    pub direction: Direction,
    /// Our bytes, and by their number how many are copied.
    pub local: &'a mut [u8],
    /// What came of it.
    pub status: GrantStatus,
}

/// A batch of grants that was not mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapFailed {
    /// The hypervisor refused one of them: the peer's doing.
    #[error("domain {domain}: grant {gref}: {status}")]
    Refused {
        /// Who was to have granted it.
        domain: DomId,
        /// The first that was refused.
        gref: GrantRef,
        /// Why.
        status: GrantStatus,
    },
    /// We could not ask: the host's doing.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl From<MapFailed> for crate::Error {
    fn from(failed: MapFailed) -> Self {
        match failed {
            MapFailed::Refused { domain, gref, status } => {
                let value = alloc::format!("{gref} ({status})");
                PeerFault::new(domain, "grant reference is refused", value).into()
            }
            MapFailed::Host(error) => error.into(),
        }
    }
}
