//! What a domain other than the control domain may use up.
//!
//! The store serves everybody from one process, so whatever a domain can make it hold is limited
//! here. Values are those that `xenstored` starts with unless told otherwise (RELEASE-4.17), except
//! where a field says more.

/// Limits on one unprivileged domain, over all of its connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Quota {
    /// Nodes it may own.
    pub nodes: usize,
    /// Bytes in one value it may write.
    pub value: usize,
    /// Watches it may have.
    pub watches: usize,
    /// Transactions it may have open.
    pub transactions: usize,
    /// Nodes one of its transactions may look at or change. (What their paths take is limited too.)
    pub transaction_nodes: usize,
    /// Entries in one node's permissions.
    pub permissions: usize,
    /// Connections it may have. (A real guest has exactly one; a process may open more.)
    pub connections: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            nodes: 1000,
            value: 2048,
            watches: 128,
            transactions: 10,
            transaction_nodes: 1024,
            permissions: 5,
            connections: 16,
        }
    }
}

/// Bytes of replies that wait for a connection to read them before its requests wait too.
pub(super) const REPLY_BYTES: usize = 64 * 1024;

/// Different changes that wait for a connection to read them before each watch is told of no more
/// than one further, at its own path.
pub(super) const EVENTS: usize = 4096;

/// Bytes of the paths of those changes, likewise.
pub(super) const EVENT_BYTES: usize = 256 * 1024;

/// Bytes of the paths that one of an unprivileged domain's transactions may look at or change.
pub(super) const TRANSACTION_BYTES: usize = 256 * 1024;
