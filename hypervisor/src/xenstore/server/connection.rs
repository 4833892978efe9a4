//! One client: what it has sent, what it has yet to read, its watches and transactions.
//!
//! Replies and events leave in the order in which they came about. What waits is bounded: a client
//! that reads no replies has its own requests wait ([`Connection::is_congested`]); a change that a
//! watch was told of and that has not left yet is not queued again, as the client will look after
//! it has read the first; and past [`quota::EVENTS`] different changes, or
//! [`quota::EVENT_BYTES`] of their paths, a watch is told once more, at its own path.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::DomId;
use crate::xenstore::server::quota;
use crate::xenstore::server::transaction::Pending;
use crate::xenstore::server::watch::Watch;
use crate::xenstore::wire::{self, Header, Kind, Message, PAYLOAD_MAX, Parser, Refusal};

/// Bytes that are put together to leave at once.
const CHUNK: usize = 16 * 1024;

/// Something that waits to leave.
#[derive(Debug)]
enum Waiting {
    Reply(Vec<u8>),
    Event(u64, Arc<str>),
}

/// The server's side of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) domain: DomId,
    pub(super) parser: Parser,
    pub(super) watches: Vec<Watch>,
    pub(super) transactions: BTreeMap<u32, Pending>,
    last_transaction: u32,
    waiting: VecDeque<Waiting>,
    /// The events among `waiting`.
    told: BTreeSet<(u64, Arc<str>)>,
    told_bytes: usize,
    reply_bytes: usize,
    leaving: Vec<u8>,
    left: usize,
}

impl Connection {
    pub(super) fn new(domain: DomId) -> Self {
        Self {
            domain,
            parser: Parser::default(),
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
            waiting: VecDeque::new(),
            told: BTreeSet::new(),
            told_bytes: 0,
            reply_bytes: 0,
            leaving: Vec::new(),
            left: 0,
        }
    }

    /// Whether its further requests have to wait until it has read replies.
    pub(super) fn is_congested(&self) -> bool {
        self.reply_bytes >= quota::REPLY_BYTES
    }

    /// A number for a new transaction.
    pub(super) fn number(&mut self) -> u32 {
        loop {
            self.last_transaction = self.last_transaction.wrapping_add(1);
            let number = self.last_transaction;
            if number != 0 && !self.transactions.contains_key(&number) {
                return number;
            }
        }
    }

    /// Queues the answer to `request`.
    pub(super) fn answer(&mut self, request: &Message, answer: Result<Vec<u8>, Refusal>) {
        let Header { request: number, transaction, .. } = request.header;
        let refused = |refusal: Refusal| {
            wire::encode(Kind::Error, number, transaction, &[refusal.name().as_bytes(), b"\0"])
        };
        let reply = match (answer, Kind::from_number(request.header.kind)) {
            (Ok(payload), Some(kind)) => wire::encode(kind, number, transaction, &[&payload])
                .or_else(|_| refused(Refusal::TooBig)),
            (Ok(_), None) => refused(Refusal::NoSuchRequest),
            (Err(refusal), _) => refused(refusal),
        };
        // An error's name always fits.
        let Ok(reply) = reply else { return };
        self.reply_bytes = self.reply_bytes.saturating_add(reply.len());
        self.waiting.push_back(Waiting::Reply(reply));
    }

    /// Queues the news for one of its watches that `path` changed.
    pub(super) fn tell(&mut self, watch: u64, path: &str) {
        let Some(own) = self.watches.iter().find(|own| own.id == watch) else { return };
        let room = own.told(path).len().saturating_add(own.token.len()).saturating_add(2);
        let bytes = self.told_bytes.saturating_add(path.len());
        let crowded =
            self.told.len() >= quota::EVENTS || bytes > quota::EVENT_BYTES || room > PAYLOAD_MAX;
        // The watch's own path did fit into the request that set it up.
        let path: Arc<str> = if crowded { own.path.as_str().into() } else { path.into() };
        if self.told.insert((watch, Arc::clone(&path))) {
            self.told_bytes = self.told_bytes.saturating_add(path.len());
            self.waiting.push_back(Waiting::Event(watch, path));
        }
    }

    /// Bytes to be sent to it next.
    pub(super) fn output(&mut self) -> &[u8] {
        if self.left >= self.leaving.len() {
            self.leaving.clear();
            self.left = 0;
            while self.leaving.len() < CHUNK {
                match self.waiting.pop_front() {
                    Some(Waiting::Reply(reply)) => {
                        self.reply_bytes = self.reply_bytes.saturating_sub(reply.len());
                        self.leaving.extend_from_slice(&reply);
                    }
                    Some(Waiting::Event(watch, path)) => self.event(watch, path),
                    None => break,
                }
            }
        }
        self.leaving.get(self.left..).unwrap_or(&[])
    }

    fn event(&mut self, watch: u64, path: Arc<str>) {
        // A watch that was given up in the meantime is not told any more.
        if let Some(own) = self.watches.iter().find(|own| own.id == watch) {
            let parts = [own.told(&path).as_bytes(), b"\0", &own.token, b"\0"];
            if let Ok(event) = wire::encode(Kind::WatchEvent, 0, 0, &parts) {
                self.leaving.extend_from_slice(&event);
            }
        }
        self.told_bytes = self.told_bytes.saturating_sub(path.len());
        self.told.remove(&(watch, path));
    }

    /// So many of the bytes of [`output`](Self::output) were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(bytes);
    }

    /// Bytes of replies, number of events and bytes of their paths that wait.
    #[cfg(any(test, fuzzing, feature = "test-util"))]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        (self.reply_bytes, self.told.len(), self.told_bytes)
    }
}
