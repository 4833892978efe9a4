//! A transaction: a copy of the tree to work on, and what of it was looked at.
//!
//! ```text
//!   base  ---- as it was at the start, shared with the tree of that moment
//!   view  ---- base and what the transaction changed
//!   seen  ---- every node it looked at or changed; `dirty` those that it changed
//!
//!   commit:  any seen node whose generation is no longer that in `base`?  ->  EAGAIN
//!            else move each dirty node from `view` into the tree
//! ```
//!
//! Nodes that are missing count as seen too: somebody may have made them since.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::xenstore::path;
use crate::xenstore::server::tree::{Node, Permissions, Tree};
use crate::xenstore::server::watch::Fired;

/// One open transaction.
#[derive(Debug)]
pub(super) struct Pending {
    base: Tree,
    pub(super) view: Tree,
    seen: BTreeSet<String>,
    dirty: BTreeSet<String>,
    /// Bytes in the paths of both.
    bytes: usize,
}

impl Pending {
    pub(super) fn new(tree: &Tree) -> Self {
        Self {
            base: tree.clone(),
            view: tree.clone(),
            seen: BTreeSet::new(),
            dirty: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// How many nodes it has looked at, and how many bytes their paths take.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.seen.len(), self.bytes)
    }

    /// Notes that the answer to a request depends on `path`, and on what it lies below where it is
    /// missing.
    pub(super) fn look(&mut self, path: &str) {
        let (nearest, _, missing) = self.view.nearest(path);
        if missing > 0 {
            note(&mut self.seen, &mut self.bytes, nearest);
        }
        note(&mut self.seen, &mut self.bytes, path);
    }

    /// Notes that `path` was made, removed or changed.
    pub(super) fn change(&mut self, path: &str) {
        note(&mut self.seen, &mut self.bytes, path);
        note(&mut self.dirty, &mut self.bytes, path);
    }

    /// Whether nobody changed what it saw.
    pub(super) fn holds(&self, tree: &Tree) -> bool {
        let generation = |tree: &Tree, path: &str| tree.get(path).map(|node| node.generation);
        self.seen.iter().all(|path| generation(&self.base, path) == generation(tree, path))
    }

    /// Makes its changes to `tree`, which must [hold](Self::holds), and says what to tell.
    pub(super) fn apply(&self, tree: &mut Tree, generation: u64) -> Vec<Fired> {
        let mut fired = Vec::new();
        // In the order of paths, what lies above comes first.
        for path in &self.dirty {
            let before = self.base.get(path).map(|node| Arc::clone(&node.permissions));
            match self.view.get(path) {
                Some(node) => {
                    tree.put(path, Some(&node.value), None, generation);
                    tree.set_permissions(path, Arc::clone(&node.permissions), generation);
                    fired.push(self.tell(path, before, Some(node)));
                }
                None => {
                    tree.remove(path, generation);
                    if before.is_some() {
                        fired.push(self.tell(path, before, None));
                    }
                }
            }
        }
        fired
    }

    fn tell(&self, path: &str, before: Option<Permissions>, after: Option<&Node>) -> Fired {
        let above = path::parent(path);
        let parent = above.and_then(|parent| self.view.get(parent).or(self.base.get(parent)));
        // Below a node that went as a whole, only who watched exactly this path is told of it.
        let exact = after.is_none() && above.is_some_and(|above| self.view.get(above).is_none());
        let after = after.map(|node| Arc::clone(&node.permissions));
        let parent = parent.map(|node| Arc::clone(&node.permissions));
        let seen_by = before.into_iter().chain(after).chain(parent).collect();
        Fired { path: path.into(), exact, seen_by }
    }
}

fn note(set: &mut BTreeSet<String>, bytes: &mut usize, path: &str) {
    if !set.contains(path) {
        *bytes = bytes.saturating_add(path.len());
        set.insert(path.into());
    }
}
