//! Watches: who is told of which change, and under what name.

use crate::xenstore::path;
use crate::xenstore::server::access::{Subject, Want};
use crate::xenstore::server::tree::Permissions;

/// A change that watches may want to be told of.
#[derive(Clone, Debug)]
pub(super) struct Fired {
    /// The node, or a special name.
    pub(super) path: String,
    /// Only watches of exactly this path are told: whoever watches from above hears of the node
    /// above that went with it.
    pub(super) exact: bool,
    /// Whoever may read by any of these may know: the node's permissions after and before, and its
    /// parent's.
    pub(super) seen_by: Vec<Permissions>,
}

/// One watch of one connection.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// Never used twice.
    pub(super) id: u64,
    /// The watched path, absolute, or special.
    pub(super) path: String,
    /// How much of the front of a path is left out when it is told: the home and its slash, where the
    /// watch was asked for by a relative path.
    pub(super) hidden: usize,
    pub(super) token: Box<[u8]>,
}

impl Watch {
    /// Whether that change is one it waits for and `who` may know of.
    pub(super) fn wants(&self, fired: &Fired, who: Subject) -> bool {
        let hit = if fired.exact {
            fired.path == self.path
        } else {
            path::is_within(&fired.path, &self.path)
        };
        hit && fired.seen_by.iter().any(|permissions| who.may(Want::Read, permissions))
    }

    /// Whether it was asked for by the same path, written the same way, with the same token.
    pub(super) fn is_same(&self, path: &str, hidden: usize, token: &[u8]) -> bool {
        self.path == path && self.hidden == hidden && *self.token == *token
    }

    /// The name by which this watch is told of `path`.
    pub(super) fn told<'p>(&self, path: &'p str) -> &'p str {
        path.get(self.hidden..).unwrap_or(path)
    }
}
