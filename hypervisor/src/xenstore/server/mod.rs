//! A store for domains that reach it by socket.
//!
//! ```text
//!   bytes -> connection (parser) -> request -> operation -> access, quota
//!                                                 |
//!                                       transaction -> tree
//!                                                 |
//!   bytes <- connection (what waits) <- reply, then what watches are told
//! ```
//!
//! [`Server`] does no input or output: bytes are [handed](Server::handle) to it and
//! [taken](Server::output) from it. [`service`] is the loop that does that for sockets.
//!
//! Differences from `xenstored`, all of which clients may meet there too, in one version or
//! another: a domain's permissions are forgotten when it is released; a change that a watch was told
//! of and that was not sent yet is not told twice; no feature or quota can be asked for (`ENOSYS`);
//! a relative path of the control domain begins at `/local/domain/0`, whichever way it came.
//!
//! Only domain 0 is trusted. What any other domain can make the server hold is limited by
//! [`Quota`], in nodes, and for each of its connections by bytes that wait: some tens of MiB in all
//! if it uses every limit up. A domain that changes its own nodes all the time can make others'
//! transactions that read those nodes fail as often; a privileged program that reads a peer's
//! nodes should do that outside of transactions.
//!
//! Source: `docs/misc/xenstore.txt`, `io/xs_wire.h` (RELEASE-4.17).

mod access;
mod connection;
#[cfg(any(test, fuzzing, feature = "test-util"))]
pub mod exercise;
mod operation;
mod quota;
mod request;
pub mod service;
mod transaction;
mod tree;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::store::Permission;
use crate::xenstore::wire::{Refusal, TooLong};
use crate::{ConfigError, DomId};

use access::{Subject, Want};
use connection::Connection;
pub use quota::Quota;
pub use service::{Handle, Service};
use tree::{Permissions, Tree};
use watch::Fired;

/// Fires when a domain has come.
const INTRODUCE: &str = "@introduceDomain";
/// Fires when a domain has gone.
const RELEASE: &str = "@releaseDomain";

/// One connection's number; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(u64);

/// The store.
#[derive(Debug)]
pub struct Server {
    tree: Tree,
    /// The last number given to a change, a watch or a connection.
    last: u64,
    connections: BTreeMap<ConnId, Connection>,
    introduced: BTreeSet<DomId>,
    /// Whom a domain acts for.
    targets: BTreeMap<DomId, DomId>,
    /// Who may know of domains that come and of domains that go.
    specials: [(&'static str, Permissions); 2],
    quota: Quota,
}

impl Default for Server {
    fn default() -> Self {
        Self::new(Quota::default())
    }
}

impl Server {
    /// A store that is empty but for `/tool/xenstored`, which clients take as a sign of life.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        let mut tree = Tree::new();
        tree.put("/tool/xenstored", Some(b""), None, 1);
        Self {
            tree,
            last: 1,
            connections: BTreeMap::new(),
            introduced: BTreeSet::new(),
            targets: BTreeMap::new(),
            specials: [INTRODUCE, RELEASE].map(|name| (name, tree::control_only())),
            quota,
        }
    }

    /// A new connection whose other end is `domain`.
    ///
    /// # Errors
    ///
    /// An unprivileged domain has as many as it may have.
    pub fn connect(&mut self, domain: DomId) -> Result<ConnId, ConfigError> {
        if domain != DomId::ZERO && self.usage(domain, |_| 1) >= self.quota.connections {
            let most = self.quota.connections;
            return Err(ConfigError::new(
                "domain",
                domain,
                format!("it has {most} connections to the store, and may not have more"),
            ));
        }
        let id = ConnId(self.generation());
        self.connections.insert(id, Connection::new(domain));
        Ok(id)
    }

    /// Forgets a connection, its watches and its transactions.
    pub fn disconnect(&mut self, id: ConnId) {
        self.connections.remove(&id);
    }

    /// Whether that connection is still there: releasing a domain ends its connections.
    #[must_use]
    pub fn is_connected(&self, id: ConnId) -> bool {
        self.connections.contains_key(&id)
    }

    /// Takes bytes that a connection sent and says how many it took. It takes fewer than it is given
    /// when replies are waiting to be read; offer the rest again after some were
    /// [sent](Self::sent).
    ///
    /// # Errors
    ///
    /// A message is longer than any may be. The connection is of no further use.
    pub fn handle(&mut self, id: ConnId, bytes: &[u8]) -> Result<usize, TooLong> {
        let mut rest = bytes;
        while let Some(connection) = self.connections.get_mut(&id) {
            if connection.is_congested() {
                break;
            }
            let taken = connection.parser.feed(rest)?;
            rest = rest.get(taken..).unwrap_or(&[]);
            let Some(message) = connection.parser.take() else { break };
            let answer = self.request(id, &message);
            let (payload, fired, first) = match answer {
                Ok(answer) => (Ok(answer.payload), answer.fired, answer.first),
                Err(refusal) => (Err(refusal), Vec::new(), None),
            };
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.answer(&message, payload);
                if let Some((watch, path)) = first {
                    connection.tell(watch, &path);
                }
            }
            self.tell(&fired);
        }
        Ok(bytes.len().saturating_sub(rest.len()))
    }

    /// Whether a connection's requests are being done. Where they wait, so should its bytes.
    #[must_use]
    pub fn wants_input(&self, id: ConnId) -> bool {
        self.connections.get(&id).is_some_and(|connection| !connection.is_congested())
    }

    /// The bytes that are to be sent to a connection next.
    pub fn output(&mut self, id: ConnId) -> &[u8] {
        self.connections.get_mut(&id).map_or(&[], Connection::output)
    }

    /// So many of the bytes of [`output`](Self::output) were sent.
    pub fn sent(&mut self, id: ConnId, bytes: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.sent(bytes);
        }
    }

    /// A domain has come. Watches of `@introduceDomain` are told, unless it was known already.
    pub fn introduce(&mut self, domain: DomId) {
        let fired = self.introduced(domain);
        self.tell(&fired);
    }

    /// A domain has gone: its connections end, nodes it owned are removed with all below them, it is
    /// struck from all permissions, and watches of `@releaseDomain` are told. Domain 0 stays.
    pub fn release(&mut self, domain: DomId) {
        let fired = self.released(domain);
        self.tell(&fired);
    }

    /// Whether a domain was introduced and not released since. Domain 0 always is there.
    #[must_use]
    pub fn is_introduced(&self, domain: DomId) -> bool {
        domain == DomId::ZERO || self.introduced.contains(&domain)
    }

    fn introduced(&mut self, domain: DomId) -> Vec<Fired> {
        if domain == DomId::ZERO || !self.introduced.insert(domain) {
            return Vec::new();
        }
        self.special_fired(INTRODUCE)
    }

    fn released(&mut self, domain: DomId) -> Vec<Fired> {
        if domain == DomId::ZERO {
            return Vec::new();
        }
        self.connections.retain(|_, connection| connection.domain != domain);
        self.targets.retain(|from, to| *from != domain && *to != domain);
        for (_, permissions) in &mut self.specials {
            *permissions = without(permissions, domain);
        }
        let mut fired = self.purge(domain);
        if self.introduced.remove(&domain) {
            fired.extend(self.special_fired(RELEASE));
        }
        fired
    }

    /// Removes what `domain` owned, and its name from all permissions.
    fn purge(&mut self, domain: DomId) -> Vec<Fired> {
        let mut owned: Vec<String> = Vec::new();
        let mut named: Vec<(String, Permissions)> = Vec::new();
        self.tree.walk(|path, node| {
            let within = |above: &String| crate::xenstore::path::is_within(path, above);
            if owned.last().is_some_and(within) {
                return;
            }
            if tree::owner(&node.permissions) == domain && path != "/" {
                owned.push(path.into());
            } else if node.permissions.iter().any(|entry| entry.domain == domain) {
                named.push((path.into(), without(&node.permissions, domain)));
            }
        });
        let generation = self.generation();
        for (path, permissions) in named {
            self.tree.set_permissions(&path, permissions, generation);
        }
        let mut fired = Vec::new();
        for path in owned {
            let gone = self.tree.remove(&path, generation);
            fired.extend(operation::gone_fired(&self.tree, gone));
        }
        fired
    }

    fn set_target(&mut self, domain: DomId, target: DomId) -> Result<(), Refusal> {
        if domain == DomId::ZERO || !self.is_introduced(domain) || !self.is_introduced(target) {
            return Err(Refusal::Missing);
        }
        self.targets.insert(domain, target);
        Ok(())
    }

    fn special(&self, name: &str) -> Option<&Permissions> {
        self.specials.iter().find(|special| special.0 == name).map(|special| &special.1)
    }

    fn set_special(
        &mut self,
        who: Subject,
        name: &str,
        list: &[Permission],
    ) -> Result<(), Refusal> {
        let special = self.specials.iter_mut().find(|special| special.0 == name);
        let (_, permissions) = special.ok_or(Refusal::Missing)?;
        if !who.may(Want::Own, permissions) {
            return Err(Refusal::Access);
        }
        if !who.is_privileged() && tree::owner(list) != tree::owner(permissions) {
            return Err(Refusal::NotPermitted);
        }
        *permissions = list.into();
        Ok(())
    }

    fn special_fired(&self, name: &'static str) -> Vec<Fired> {
        let seen_by = self.special(name).cloned().into_iter().collect();
        vec![Fired { path: name.into(), exact: false, seen_by }]
    }

    /// Tells every watch that wants to know.
    fn tell(&mut self, fired: &[Fired]) {
        if fired.is_empty() {
            return;
        }
        for connection in self.connections.values_mut() {
            let domain = connection.domain;
            let who = Subject { domain, target: self.targets.get(&domain).copied() };
            for fired in fired {
                let hit = |watch: &&watch::Watch| watch.wants(fired, who);
                let ids: Vec<u64> = connection.watches.iter().filter(hit).map(|w| w.id).collect();
                for id in ids {
                    connection.tell(id, &fired.path);
                }
            }
        }
    }

    fn subject(&self, id: ConnId) -> Option<Subject> {
        let domain = self.connections.get(&id)?.domain;
        Some(Subject { domain, target: self.targets.get(&domain).copied() })
    }

    fn reset(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.watches.clear();
            connection.transactions.clear();
        }
    }

    /// What a domain uses of something, over all its connections.
    fn usage(&self, domain: DomId, of: impl Fn(&Connection) -> usize) -> usize {
        let own = self.connections.values().filter(|connection| connection.domain == domain);
        own.fold(0, |sum, connection| sum.saturating_add(of(connection)))
    }

    fn generation(&mut self) -> u64 {
        self.last = self.last.saturating_add(1);
        self.last
    }
}

/// The permissions without what they say of `domain`; an owner becomes the control domain.
fn without(permissions: &Permissions, domain: DomId) -> Permissions {
    if permissions.iter().all(|entry| entry.domain != domain) {
        return Arc::clone(permissions);
    }
    let mut kept = Vec::new();
    for (at, entry) in permissions.iter().enumerate() {
        if entry.domain != domain {
            kept.push(*entry);
        } else if at == 0 {
            kept.push(Permission { domain: DomId::ZERO, read: false, write: false });
        }
    }
    kept.into()
}

#[cfg(test)]
mod tests;
