//! What may be done to nodes: checked, noted in a transaction, done, and told.
//!
//! Each function first finds out whether the caller may, and changes nothing where it may not.

use std::sync::Arc;

use crate::store::Permission;
use crate::xenstore::path;
use crate::xenstore::server::access::{Subject, Want};
use crate::xenstore::server::quota::{self, Quota};
use crate::xenstore::server::transaction::Pending;
use crate::xenstore::server::tree::{self, Node, Permissions, Tree};
use crate::xenstore::server::watch::Fired;
use crate::xenstore::wire::Refusal;

/// Where a request takes effect.
pub(super) enum Place<'a> {
    /// In the tree that everybody sees.
    Tree(&'a mut Tree),
    /// In a transaction.
    Within(&'a mut Pending),
}

impl Place<'_> {
    fn tree(&mut self) -> &mut Tree {
        match self {
            Self::Tree(tree) => tree,
            Self::Within(pending) => &mut pending.view,
        }
    }

    fn look(&mut self, path: &str) {
        if let Self::Within(pending) = self {
            pending.look(path);
        }
    }

    fn change(&mut self, path: &str) {
        if let Self::Within(pending) = self {
            pending.change(path);
        }
    }
}

/// A request on its way: where it takes effect, who asks, what limits it.
pub(super) struct Operation<'a> {
    pub(super) place: Place<'a>,
    pub(super) who: Subject,
    pub(super) quota: &'a Quota,
    /// The number for what it changes.
    pub(super) generation: u64,
}

impl Operation<'_> {
    /// The node at `path`, to be read.
    pub(super) fn read(&mut self, path: &str) -> Result<&Node, Refusal> {
        self.look(path)?;
        self.who.get(self.place.tree(), path, Want::Read)
    }

    /// Sets a value, or with `None` just sees to it that the node is there.
    pub(super) fn write(
        &mut self,
        path: &str,
        value: Option<&[u8]>,
    ) -> Result<Vec<Fired>, Refusal> {
        self.look(path)?;
        let (who, quota) = (self.who, self.quota);
        let limited = !who.is_privileged();
        if limited && value.is_some_and(|value| value.len() > quota.value) {
            return Err(Refusal::NoSpace);
        }
        let tree = self.place.tree();
        match who.get(tree, path, Want::Write) {
            Ok(_) if value.is_none() => return Ok(Vec::new()),
            Ok(_) => {}
            Err(Refusal::Missing) => {
                let (_, _, missing) = tree.nearest(path);
                let owned = tree.owned(who.domain);
                if limited && owned.saturating_add(missing) > quota.nodes {
                    return Err(Refusal::NoSpace);
                }
            }
            Err(other) => return Err(other),
        }
        let made = tree.put(path, value, limited.then_some(who.domain), self.generation);
        for path in &made {
            self.place.change(path);
        }
        self.place.change(path);
        Ok(self.fired(path, None))
    }

    /// Removes a node and all below it.
    pub(super) fn remove(&mut self, path: &str) -> Result<Vec<Fired>, Refusal> {
        let Some(parent) = path::parent(path) else { return Err(Refusal::Invalid) };
        self.look(path)?;
        match self.who.get(self.place.tree(), path, Want::Write) {
            Ok(_) => {}
            Err(Refusal::Missing) => {
                // To remove what is not there is fine, but not where it could not be.
                let parent = self.place.tree().get(parent);
                return parent.map(|_| Vec::new()).ok_or(Refusal::Missing);
            }
            Err(other) => return Err(other),
        }
        self.look(parent)?;
        if matches!(self.place, Place::Within(_)) {
            let mut below = Vec::new();
            self.place.tree().walk_from(path, |path, _| below.push(String::from(path)));
            for path in &below {
                self.look(path)?;
            }
        }
        let gone = self.place.tree().remove(path, self.generation);
        for (path, _) in &gone {
            self.place.change(path);
        }
        match &self.place {
            Place::Tree(tree) => Ok(gone_fired(tree, gone)),
            Place::Within(_) => Ok(Vec::new()),
        }
    }

    /// Replaces a node's permissions.
    pub(super) fn set_permissions(
        &mut self,
        path: &str,
        list: &[Permission],
    ) -> Result<Vec<Fired>, Refusal> {
        self.look(path)?;
        let (who, quota) = (self.who, self.quota);
        let tree = self.place.tree();
        let before = Arc::clone(&who.get(tree, path, Want::Own)?.permissions);
        if !who.is_privileged() {
            if list.len() > quota.permissions {
                return Err(Refusal::NoSpace);
            }
            if tree::owner(list) != tree::owner(&before) {
                return Err(Refusal::NotPermitted);
            }
        }
        tree.set_permissions(path, list.into(), self.generation);
        self.place.change(path);
        Ok(self.fired(path, Some(before)))
    }

    /// Notes what a transaction looks at, within what it may.
    fn look(&mut self, path: &str) -> Result<(), Refusal> {
        self.place.look(path);
        let Place::Within(pending) = &self.place else { return Ok(()) };
        let (nodes, bytes) = pending.size();
        let full = nodes > self.quota.transaction_nodes || bytes > quota::TRANSACTION_BYTES;
        if full && !self.who.is_privileged() { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    /// What to tell at once of a change: nothing, in a transaction.
    fn fired(&self, path: &str, before: Option<Permissions>) -> Vec<Fired> {
        let Place::Tree(tree) = &self.place else { return Vec::new() };
        let permissions = |path| tree.get(path).map(|node| Arc::clone(&node.permissions));
        let parent = path::parent(path).and_then(permissions);
        let seen_by = permissions(path).into_iter().chain(before).chain(parent).collect();
        vec![Fired { path: path.into(), exact: false, seen_by }]
    }
}

/// What to tell of nodes that went, of which the first had been above all others. `tree` is without
/// them.
pub(super) fn gone_fired(tree: &Tree, gone: Vec<(String, Permissions)>) -> Vec<Fired> {
    let first = gone.first().map(|(path, _)| path.clone());
    let parent = first
        .as_deref()
        .and_then(path::parent)
        .and_then(|parent| tree.get(parent))
        .map(|node| Arc::clone(&node.permissions));
    gone.into_iter()
        .map(|(path, permissions)| {
            let exact = first.as_ref() != Some(&path);
            let seen_by = std::iter::once(permissions).chain(parent.clone()).collect();
            Fired { path, exact, seen_by }
        })
        .collect()
}
