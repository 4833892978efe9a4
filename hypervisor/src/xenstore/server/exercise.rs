//! The server under arbitrary bytes, for fuzzers and tests.

use crate::DomId;
use crate::xenstore::server::{ConnId, Quota, Server, quota};

/// Lets three clients send whatever `bytes` says, in the order and pieces it says, and read or not
/// read as it says; then checks that what the server holds is still within its limits.
///
/// # Panics
///
/// The server broke a promise.
pub fn exercise(bytes: &[u8]) {
    let mut server = Server::new(Quota { nodes: 20, ..Quota::default() });
    let domains: Vec<DomId> = (0..3).filter_map(DomId::new).collect();
    let mut clients: Vec<Option<ConnId>> =
        domains.iter().map(|domain| server.connect(*domain).ok()).collect();
    let mut rest = bytes;
    while let [what, len, tail @ ..] = rest {
        let (piece, after) = tail.split_at_checked(usize::from(*len)).unwrap_or((tail, &[]));
        rest = after;
        let which = usize::from(*what & 3);
        let (Some(client), Some(domain)) = (clients.get_mut(which), domains.get(which)) else {
            continue;
        };
        let id = *client.get_or_insert_with(|| {
            // A client that was cut off before has left, so there is room for it.
            server.connect(*domain).unwrap_or(ConnId(u64::MAX))
        });
        match *what >> 2 {
            0 => server.introduce(*domain),
            1 => server.release(*domain),
            2 => {
                let ready = server.output(id).len();
                server.sent(id, ready);
            }
            _ => {
                if server.handle(id, piece).is_err() {
                    server.disconnect(id);
                }
            }
        }
        if !server.is_connected(id) {
            *client = None;
        }
    }
    check(&server);
}

fn check(server: &Server) {
    let mut owned = std::collections::BTreeMap::<DomId, usize>::new();
    server.tree.walk(|_, node| {
        let owner = super::tree::owner(&node.permissions);
        let count = owned.entry(owner).or_default();
        *count = count.saturating_add(1);
    });
    for (domain, count) in owned {
        assert_eq!(server.tree.owned(domain), count, "nodes of domain {domain}");
    }
    for connection in server.connections.values() {
        let (replies, events, bytes) = connection.held();
        assert!(replies < quota::REPLY_BYTES.saturating_add(8192), "{replies} bytes of replies");
        assert!(
            events <= quota::EVENTS.saturating_add(connection.watches.len()),
            "{events} events wait"
        );
        let own: usize = connection.watches.iter().map(|watch| watch.path.len()).sum();
        assert!(bytes <= quota::EVENT_BYTES.saturating_add(own), "{bytes} bytes of events");
        if connection.domain != DomId::ZERO {
            assert!(connection.watches.len() <= server.quota.watches);
            assert!(connection.transactions.len() <= server.quota.transactions);
        }
    }
}
