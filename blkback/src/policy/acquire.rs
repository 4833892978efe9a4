//! Whether guest pages stay mapped, are mapped for each request, or are copied.
//!
//! What stays mapped is free after its first use, whatever the platform. Of what does not, on the
//! embedded hypervisor mapping is no system call and copies nothing. On Xen each call that maps or
//! unmaps costs more than to copy what a request moves: mapping and unmapping a page took sixteen
//! times as long as copying it, and 32 pages in one call 2.5 times (`hypervisor::xen` has the table).

/// What it costs the platform to map pages for a single request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Less than to copy them.
    #[default]
    Cheap,
    /// More than to copy them.
    Dear,
}

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

    /// What suits a frontend that does, or does not, reuse its grants, where mapping costs so much.
    #[must_use]
    pub const fn for_frontend(persistent: bool, mapping: Mapping) -> Self {
        match (persistent, mapping) {
            (true, _) => Self::Persistent { pages: Self::PERSISTENT_PAGES },
            (false, Mapping::Cheap) => Self::Map,
            (false, Mapping::Dear) => Self::Copy { pages: Self::COPY_PAGES },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mapping, Reach};

    #[test]
    fn nothing_is_mapped_for_one_request_where_that_is_dear() {
        for mapping in [Mapping::Cheap, Mapping::Dear] {
            let kept = Reach::for_frontend(true, mapping);
            assert!(matches!(kept, Reach::Persistent { .. }), "{kept:?}");
        }
        assert_eq!(Reach::for_frontend(false, Mapping::Cheap), Reach::Map);
        let copied = Reach::for_frontend(false, Mapping::Dear);
        assert!(matches!(copied, Reach::Copy { .. }), "{copied:?}");
    }
}
