//! Who may do what with a node.
//!
//! The control domain and a node's owner may do everything. For anybody else the first entry after
//! the owner's that names it decides, and the owner's entry says what those not named may do. A
//! domain that acts for another (`SET_TARGET`) counts as either. Source: `docs/misc/xenstore.txt`.
//!
//! That a node is missing is told only to whoever could do with the nearest node above it what it
//! wants to do with this one.

use crate::DomId;
use crate::store::Permission;
use crate::xenstore::server::tree::{self, Node, Tree};
use crate::xenstore::wire::Refusal;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Subject {
    pub(super) domain: DomId,
    /// Whom it acts for.
    pub(super) target: Option<DomId>,
}

/// What somebody wants to do with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    Read,
    Write,
    Own,
}

impl Subject {
    pub(super) fn is_privileged(self) -> bool {
        self.domain == DomId::ZERO
    }

    fn is(self, domain: DomId) -> bool {
        self.domain == domain || self.target == Some(domain)
    }

    /// Whether those permissions let it.
    pub(super) fn may(self, want: Want, permissions: &[Permission]) -> bool {
        if self.is_privileged() || self.is(tree::owner(permissions)) {
            return true;
        }
        let named = permissions.iter().skip(1).find(|entry| self.is(entry.domain));
        named.or(permissions.first()).is_some_and(|entry| match want {
            Want::Read => entry.read,
            Want::Write => entry.write,
            Want::Own => false,
        })
    }

    /// The node at `path`, if it is there and may be used so.
    pub(super) fn get<'t>(
        self,
        tree: &'t Tree,
        path: &str,
        want: Want,
    ) -> Result<&'t Node, Refusal> {
        match tree.nearest(path) {
            (_, node, 0) if self.may(want, &node.permissions) => Ok(node),
            (_, node, missing) if missing > 0 && self.may(want, &node.permissions) => {
                Err(Refusal::Missing)
            }
            _ => Err(Refusal::Access),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(number: u16) -> DomId {
        DomId::new(number).unwrap()
    }

    fn list(text: &[&str]) -> Vec<Permission> {
        text.iter()
            .map(|text| crate::xenstore::wire::parse_permission(text.as_bytes()).unwrap())
            .collect()
    }

    #[test]
    fn owner_named_and_others() {
        let one = Subject { domain: domain(1), target: None };
        let two = Subject { domain: domain(2), target: None };
        let three = Subject { domain: domain(3), target: None };
        let permissions = list(&["r1", "n2", "b2"]);
        assert!(one.may(Want::Own, &permissions) && one.may(Want::Write, &permissions));
        assert!(!two.may(Want::Read, &permissions), "the first entry that names it decides");
        assert!(three.may(Want::Read, &permissions) && !three.may(Want::Write, &permissions));
        assert!(!three.may(Want::Own, &permissions));
        let zero = Subject { domain: DomId::ZERO, target: None };
        assert!(zero.may(Want::Own, &permissions));
        let for_one = Subject { domain: domain(3), target: Some(domain(1)) };
        assert!(for_one.may(Want::Own, &permissions));
    }

    #[test]
    fn what_is_missing_is_told_only_to_whom_may_read_above() {
        let mut tree = Tree::new();
        tree.put("/open/x", Some(b""), None, 1);
        tree.set_permissions("/open", list(&["r0"]).into(), 2);
        let one = Subject { domain: domain(1), target: None };
        let error = |path| one.get(&tree, path, Want::Read).unwrap_err();
        assert_eq!(error("/open/none/deeper"), Refusal::Missing);
        assert_eq!(error("/open/x"), Refusal::Access);
        assert_eq!(error("/open/x/none"), Refusal::Access);
        assert_eq!(error("/none"), Refusal::Access);
    }
}
