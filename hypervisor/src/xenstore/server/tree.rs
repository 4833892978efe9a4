//! The tree of nodes: its shape, and nothing about who may do what.
//!
//! A tree is cheap to copy: copies share their nodes until one of them changes some, and then only
//! the nodes from the root down to the change are made anew. That is what a transaction works on.
//!
//! Every change stamps the node it is made to with a number that never comes twice (its
//! *generation*). Making or removing a child changes its parent too, as a list of children is part
//! of the node that has them; changing a child's value does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::DomId;
use crate::store::Permission;
use crate::xenstore::path;

/// A list of permissions as nodes share them; the first entry's domain owns the node.
pub(super) type Permissions = Arc<[Permission]>;

/// Permissions for the control domain alone.
pub(super) fn control_only() -> Permissions {
    Arc::new([Permission { domain: DomId::ZERO, read: false, write: false }])
}

/// Who owns what has these permissions.
pub(super) fn owner(permissions: &[Permission]) -> DomId {
    permissions.first().map_or(DomId::ZERO, |first| first.domain)
}

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Arc<[u8]>,
    pub(super) permissions: Permissions,
    pub(super) generation: u64,
    children: BTreeMap<Box<str>, Arc<Node>>,
}

impl Node {
    fn new(permissions: Permissions, generation: u64) -> Self {
        Self { value: Arc::new([]), permissions, generation, children: BTreeMap::new() }
    }

    /// The names of its children, in order.
    pub(super) fn children(&self) -> impl Iterator<Item = &str> {
        self.children.keys().map(AsRef::as_ref)
    }

    /// Calls `see` with this node and all below it, parents first. `path` is this node's.
    fn walk(&self, path: &str, see: &mut impl FnMut(&str, &Self)) {
        see(path, self);
        for (name, child) in &self.children {
            child.walk(&below(path, name), see);
        }
    }
}

fn below(path: &str, name: &str) -> String {
    if path == "/" { format!("/{name}") } else { format!("{path}/{name}") }
}

/// All nodes, and how many of them each domain owns.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: Arc<Node>,
    owned: BTreeMap<DomId, usize>,
}

impl Tree {
    /// A tree of just the root, which is the control domain's.
    pub(super) fn new() -> Self {
        let root = Arc::new(Node::new(control_only(), 0));
        Self { root, owned: BTreeMap::from([(DomId::ZERO, 1)]) }
    }

    /// The node at `path`.
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        let mut node = &self.root;
        for name in path::names(path) {
            node = node.children.get(name)?;
        }
        Some(node)
    }

    /// The node at `path`, or else the nearest above it that exists, with its path; and how many
    /// nodes are missing below that.
    pub(super) fn nearest<'p>(&self, path: &'p str) -> (&'p str, &Node, usize) {
        let mut node = &self.root;
        let mut end = 0_usize;
        let mut missing = 0_usize;
        for name in path::names(path) {
            match node.children.get(name).filter(|_| missing == 0) {
                Some(child) => {
                    node = child;
                    end = end.saturating_add(name.len()).saturating_add(1);
                }
                None => missing = missing.saturating_add(1),
            }
        }
        (path.get(..end).filter(|at| !at.is_empty()).unwrap_or("/"), node, missing)
    }

    /// How many nodes `domain` owns.
    pub(super) fn owned(&self, domain: DomId) -> usize {
        self.owned.get(&domain).copied().unwrap_or(0)
    }

    /// Makes `path` and what is missing above it, each with its parent's permissions but owned by
    /// `creator` if one is named; sets its value, if one is given. Says which nodes it made.
    pub(super) fn put(
        &mut self,
        path: &str,
        value: Option<&[u8]>,
        creator: Option<DomId>,
        generation: u64,
    ) -> Vec<String> {
        let mut made = Vec::new();
        let mut at = String::from("/");
        let mut node = Arc::make_mut(&mut self.root);
        for name in path::names(path) {
            at = below(&at, name);
            if !node.children.contains_key(name) {
                let permissions = inherited(&node.permissions, creator);
                count(&mut self.owned, &permissions, 1);
                node.generation = generation;
                made.push(at.clone());
                node.children.insert(name.into(), Arc::new(Node::new(permissions, generation)));
            }
            let Some(child) = node.children.get_mut(name) else { return made };
            node = Arc::make_mut(child);
        }
        if let Some(value) = value {
            node.value = value.into();
            node.generation = generation;
        }
        made
    }

    /// Replaces the permissions of the node at `path`, if there is one.
    pub(super) fn set_permissions(
        &mut self,
        path: &str,
        permissions: Permissions,
        generation: u64,
    ) {
        let Some(node) = self.get_mut(path) else { return };
        let before = std::mem::replace(&mut node.permissions, Arc::clone(&permissions));
        node.generation = generation;
        count(&mut self.owned, &before, -1);
        count(&mut self.owned, &permissions, 1);
    }

    /// Removes the node at `path` and all below it; says what was there, parents first. The root
    /// stays.
    pub(super) fn remove(&mut self, path: &str, generation: u64) -> Vec<(String, Permissions)> {
        let mut gone = Vec::new();
        let Some(above) = path::parent(path) else { return gone };
        if self.get(path).is_none() {
            return gone;
        }
        let Some(parent) = self.get_mut(above) else { return gone };
        let Some(name) = path::names(path).last() else { return gone };
        let Some(node) = parent.children.remove(name) else { return gone };
        parent.generation = generation;
        node.walk(path, &mut |at, node| gone.push((at.into(), Arc::clone(&node.permissions))));
        for (_, permissions) in &gone {
            count(&mut self.owned, permissions, -1);
        }
        gone
    }

    /// Calls `see` with every node, parents first.
    pub(super) fn walk(&self, mut see: impl FnMut(&str, &Node)) {
        self.root.walk("/", &mut see);
    }

    /// Calls `see` with the node at `path` and all below it, parents first.
    pub(super) fn walk_from(&self, path: &str, mut see: impl FnMut(&str, &Node)) {
        if let Some(node) = self.get(path) {
            node.walk(path, &mut see);
        }
    }

    fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        let mut node = Arc::make_mut(&mut self.root);
        for name in path::names(path) {
            node = Arc::make_mut(node.children.get_mut(name)?);
        }
        Some(node)
    }
}

fn inherited(parent: &Permissions, creator: Option<DomId>) -> Permissions {
    match creator {
        Some(creator) if owner(parent) != creator => {
            let mut own = parent.to_vec();
            if let Some(first) = own.first_mut() {
                first.domain = creator;
            }
            own.into()
        }
        _ => Arc::clone(parent),
    }
}

fn count(owned: &mut BTreeMap<DomId, usize>, permissions: &[Permission], by: isize) {
    let entry = owned.entry(owner(permissions)).or_default();
    *entry = entry.saturating_add_signed(by);
    if *entry == 0 {
        owned.remove(&owner(permissions));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_node_above() {
        let mut tree = Tree::new();
        tree.put("/a/b", Some(b"x"), None, 1);
        for (path, nearest, missing) in [
            ("/", "/", 0),
            ("/a/b", "/a/b", 0),
            ("/a/b/c", "/a/b", 1),
            ("/a/c/b", "/a", 2),
            ("/b/a/b", "/", 3),
        ] {
            let (at, node, many) = tree.nearest(path);
            assert_eq!((at, many), (nearest, missing), "{path}");
            assert_eq!(node.generation, tree.get(nearest).unwrap().generation);
        }
    }

    #[test]
    fn copies_share_what_neither_changed() {
        let mut tree = Tree::new();
        tree.put("/a/b", Some(b"x"), None, 1);
        tree.put("/c/d", Some(b"x"), None, 2);
        let copy = tree.clone();
        tree.put("/a/b", Some(b"y"), None, 3);
        assert_eq!(&*copy.get("/a/b").unwrap().value, b"x");
        let same = |path| std::ptr::eq(tree.get(path).unwrap(), copy.get(path).unwrap());
        assert!(same("/c") && same("/c/d"));
        assert!(!same("/a") && !same("/a/b"));
    }

    #[test]
    fn a_change_stamps_its_node_and_a_new_child_its_parent() {
        let mut tree = Tree::new();
        let generations = |tree: &Tree| {
            ["/", "/a", "/a/b"].map(|path| tree.get(path).map(|node| node.generation))
        };
        assert_eq!(tree.put("/a/b", Some(b""), None, 1), ["/a", "/a/b"]);
        assert_eq!(generations(&tree), [Some(1), Some(1), Some(1)]);
        assert_eq!(tree.put("/a/b", Some(b"x"), None, 2), [""; 0]);
        assert_eq!(generations(&tree), [Some(1), Some(1), Some(2)]);
        tree.set_permissions("/a", control_only(), 3);
        assert_eq!(generations(&tree), [Some(1), Some(3), Some(2)]);
        assert_eq!(tree.remove("/a/b", 4).len(), 1);
        assert_eq!(generations(&tree), [Some(1), Some(4), None]);
        assert_eq!(tree.remove("/", 5).len(), 0, "the root stays");
    }
}
