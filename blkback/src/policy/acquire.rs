//! Whether guest pages stay mapped, are mapped for each request, or are copied.

/// How a guest's pages are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reach {
    /// Pages stay mapped between requests, this many a queue at most. Costs nothing per request
    /// with a frontend that reuses its grants, and is what `feature-persistent` asks for.
    Persistent {
        /// The most pages.
        pages: usize,
    },
    /// Pages are mapped for each request and unmapped after it. No byte is copied; cheap where mapping
    /// is no system call.
    Map,
    /// Pages are copied through our own memory, one operation for a batch of requests. Best where
    /// mapping means page table work on every processor, and it never lends a page of the guest's
    /// to the medium.
    Copy {
        /// The most memory to copy through, in pages.
        pages: usize,
    },
}

impl Reach {
    /// The most pages that stay mapped for a queue: every segment of a full single-page ring
    /// (32 requests of 32 segments) and its descriptor pages, which is also what a stock Linux frontend
    /// keeps granted.
    pub const PERSISTENT_PAGES: usize = 32 * 32 + 32;

    /// The most memory to copy through for a queue: 8 MiB.
    pub const COPY_PAGES: usize = 2048;

    /// What suits a frontend that does, or does not, reuse its grants.
    #[must_use]
    pub const fn for_frontend(persistent: bool) -> Self {
        if persistent { Self::Persistent { pages: Self::PERSISTENT_PAGES } } else { Self::Map }
    }
}
