//! The granting side: offer pages of one's own to another domain, and take them back.

use crate::memory::Memory;
use crate::{DomId, GrantRef, HostError};

/// What the other domain may do with a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Read it (`GTF_readonly`, grant_table.h).
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// What became of a grant that was to be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a page whose grant is still in use must not be reused"]
pub enum Revoked {
    /// The peer can no longer reach the page through it.
    Done,
    /// The peer has it mapped. The grant stands and the page must not be reused: quarantine it and
    /// try again later (advisory 396).
    Busy,
}

/// A domain that can offer its pages to others.
pub trait Granting {
    /// Pages of this domain that can be offered. Zeroed when new; freed on drop. Dropping pages
    /// that are still granted is the caller's error: an implementation keeps them aside instead
    /// of freeing them.
    type Memory: Memory + Send + Sync + 'static;

    /// `pages` contiguous pages that can be offered to `peer`.
    ///
    /// The peer is named here because on some platforms pages are born granted (gntalloc).
    ///
    /// # Errors
    ///
    /// The domain has no such memory left.
    fn allocate(&self, pages: usize, peer: DomId) -> Result<Self::Memory, HostError>;

    /// Offers the pages of `memory` from page `first` on to the peer they were allocated for, one
    /// reference each, until `grefs` is full.
    ///
    /// # Errors
    ///
    /// The grant table is full or `memory` has not that many pages; then nothing was granted.
    fn grant(
        &self,
        memory: &Self::Memory,
        first: usize,
        access: Access,
        grefs: &mut [GrantRef],
    ) -> Result<(), HostError>;

    /// Takes one offer back.
    fn revoke(&self, gref: GrantRef) -> Revoked;
}
