//! Requests: what each kind's payload says, and what is answered.
//!
//! Source: `docs/misc/xenstore.txt` (RELEASE-4.17), one arm per message there. Payloads come from
//! untrusted domains.

use crate::DomId;
use crate::store::Permission;
use crate::xenstore::path;
use crate::xenstore::server::access::{Subject, Want};
use crate::xenstore::server::operation::{Operation, Place};
use crate::xenstore::server::transaction::Pending;
use crate::xenstore::server::tree::Node;
use crate::xenstore::server::watch::{Fired, Watch};
use crate::xenstore::server::{ConnId, Server};
use crate::xenstore::wire::{self, Kind, Message, PAYLOAD_MAX, Refusal};

/// What came of a request.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) payload: Vec<u8>,
    /// What all watches are to be told.
    pub(super) fired: Vec<Fired>,
    /// A watch that is new, to be told of its own path.
    pub(super) first: Option<(u64, String)>,
}

impl Answer {
    fn done() -> Self {
        Self { payload: b"OK\0".to_vec(), ..Self::default() }
    }

    fn text(text: &str) -> Self {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        Self { payload, ..Self::default() }
    }

    fn changed(fired: Vec<Fired>) -> Self {
        Self { fired, ..Self::done() }
    }
}

/// The one string that is all of `payload`.
fn only(payload: &[u8]) -> Result<&[u8], Refusal> {
    match wire::strings(payload) {
        Some(([text], [])) => Ok(text),
        _ => Err(Refusal::Invalid),
    }
}

/// The domain that is all of `payload`.
fn domain(payload: &[u8]) -> Result<DomId, Refusal> {
    wire::decimal(only(payload)?).and_then(DomId::new).ok_or(Refusal::Invalid)
}

impl Server {
    /// Does what a connection asks for.
    pub(super) fn request(&mut self, id: ConnId, message: &Message) -> Result<Answer, Refusal> {
        let who = self.subject(id).ok_or(Refusal::Invalid)?;
        let payload = message.payload.as_slice();
        let number = message.header.transaction;
        let path = |text| path::absolute(text, who.domain).ok_or(Refusal::Invalid);
        let kind = Kind::from_number(message.header.kind).ok_or(Refusal::NoSuchRequest)?;
        match kind {
            Kind::Read => {
                let path = path(only(payload)?)?;
                let payload = self.operation(id, number, who)?.read(&path)?.value.to_vec();
                Ok(Answer { payload, ..Answer::default() })
            }
            Kind::Directory => {
                let path = path(only(payload)?)?;
                let names = names(self.operation(id, number, who)?.read(&path)?);
                if names.len() > PAYLOAD_MAX {
                    return Err(Refusal::TooBig);
                }
                Ok(Answer { payload: names, ..Answer::default() })
            }
            Kind::DirectoryPart => {
                let Some(([text, offset], [])) = wire::strings(payload) else {
                    return Err(Refusal::Invalid);
                };
                let offset = wire::decimal(offset).ok_or(Refusal::Invalid)?;
                let path = path(text)?;
                let payload = part(self.operation(id, number, who)?.read(&path)?, offset)?;
                Ok(Answer { payload, ..Answer::default() })
            }
            Kind::Write => {
                let ([text], value) = wire::strings(payload).ok_or(Refusal::Invalid)?;
                let path = path(text)?;
                self.operation(id, number, who)?.write(&path, Some(value)).map(Answer::changed)
            }
            Kind::Mkdir => {
                let path = path(only(payload)?)?;
                self.operation(id, number, who)?.write(&path, None).map(Answer::changed)
            }
            Kind::Rm => {
                let path = path(only(payload)?)?;
                self.operation(id, number, who)?.remove(&path).map(Answer::changed)
            }
            Kind::GetPerms => {
                let text = only(payload)?;
                if let Some(name) = path::special(text) {
                    let permissions = self.special(name).ok_or(Refusal::Missing)?;
                    if !who.may(Want::Read, permissions) {
                        return Err(Refusal::Access);
                    }
                    return Ok(Answer { payload: listed(permissions), ..Answer::default() });
                }
                let path = path(text)?;
                let payload = listed(&self.operation(id, number, who)?.read(&path)?.permissions);
                Ok(Answer { payload, ..Answer::default() })
            }
            Kind::SetPerms => {
                let ([text], list) = wire::strings(payload).ok_or(Refusal::Invalid)?;
                let list = permissions(list).ok_or(Refusal::Invalid)?;
                if let Some(name) = path::special(text) {
                    return self.set_special(who, name, &list).map(|()| Answer::done());
                }
                let path = path(text)?;
                self.operation(id, number, who)?.set_permissions(&path, &list).map(Answer::changed)
            }
            Kind::Watch => self.watch(id, who, payload),
            Kind::Unwatch => self.unwatch(id, who, payload),
            Kind::ResetWatches => {
                self.reset(id);
                Ok(Answer::done())
            }
            Kind::TransactionStart if number != 0 => Err(Refusal::Busy),
            Kind::TransactionStart => self.start(id, who),
            Kind::TransactionEnd => {
                let commit = match payload {
                    b"T\0" => true,
                    b"F\0" => false,
                    _ => return Err(Refusal::Invalid),
                };
                self.end(id, who, number, commit).map(Answer::changed)
            }
            Kind::GetDomainPath => Ok(Answer::text(&path::home(domain(payload)?))),
            Kind::IsDomainIntroduced => {
                let known = self.is_introduced(domain(payload)?);
                Ok(Answer::text(if known { "T" } else { "F" }))
            }
            Kind::Introduce | Kind::Release | Kind::Resume | Kind::SetTarget | Kind::Control
                if !who.is_privileged() =>
            {
                Err(Refusal::Access)
            }
            Kind::Introduce => {
                // The page and the event channel are for guests that share memory with the store;
                // ours come by socket.
                let Some(([text, _, _], _)) = wire::strings(payload) else {
                    return Err(Refusal::Invalid);
                };
                let domain = wire::decimal(text).and_then(DomId::new).ok_or(Refusal::Invalid)?;
                Ok(Answer::changed(self.introduced(domain)))
            }
            Kind::Release => match domain(payload)? {
                DomId::ZERO => Err(Refusal::Invalid),
                domain if !self.is_introduced(domain) => Err(Refusal::Missing),
                domain => Ok(Answer::changed(self.released(domain))),
            },
            Kind::Resume => match domain(payload)? {
                domain if self.is_introduced(domain) => Ok(Answer::done()),
                _ => Err(Refusal::Missing),
            },
            Kind::SetTarget => {
                let Some(([domain, target], [])) = wire::strings(payload) else {
                    return Err(Refusal::Invalid);
                };
                let parse = |text| wire::decimal(text).and_then(DomId::new).ok_or(Refusal::Invalid);
                self.set_target(parse(domain)?, parse(target)?).map(|()| Answer::done())
            }
            Kind::Control => match only(payload)? {
                b"help" => Ok(Answer::text("help")),
                _ => Err(Refusal::Invalid),
            },
            Kind::WatchEvent | Kind::Error => Err(Refusal::NoSuchRequest),
        }
    }

    /// Where a request with that transaction number takes effect.
    fn operation(
        &mut self,
        id: ConnId,
        number: u32,
        who: Subject,
    ) -> Result<Operation<'_>, Refusal> {
        let generation = self.generation();
        let place = if number == 0 {
            Place::Tree(&mut self.tree)
        } else {
            let connection = self.connections.get_mut(&id).ok_or(Refusal::Invalid)?;
            Place::Within(connection.transactions.get_mut(&number).ok_or(Refusal::Missing)?)
        };
        Ok(Operation { place, who, quota: &self.quota, generation })
    }

    fn watch(&mut self, id: ConnId, who: Subject, payload: &[u8]) -> Result<Answer, Refusal> {
        let Some(([text, token], [])) = wire::strings(payload) else {
            return Err(Refusal::Invalid);
        };
        let (path, hidden) = watched(text, who.domain)?;
        let used = self.usage(who.domain, |connection| connection.watches.len());
        if !who.is_privileged() && used >= self.quota.watches {
            return Err(Refusal::TooBig);
        }
        let number = self.generation();
        let connection = self.connections.get_mut(&id).ok_or(Refusal::Invalid)?;
        let same = |watch: &Watch| watch.is_same(&path, hidden, token);
        if connection.watches.iter().any(same) {
            return Err(Refusal::Exists);
        }
        let watch = Watch { id: number, path: path.clone(), hidden, token: token.into() };
        connection.watches.push(watch);
        Ok(Answer { first: Some((number, path)), ..Answer::done() })
    }

    fn unwatch(&mut self, id: ConnId, who: Subject, payload: &[u8]) -> Result<Answer, Refusal> {
        let ([text, token], _) = wire::strings(payload).ok_or(Refusal::Invalid)?;
        let (path, hidden) = watched(text, who.domain)?;
        let connection = self.connections.get_mut(&id).ok_or(Refusal::Invalid)?;
        let same = |watch: &Watch| watch.is_same(&path, hidden, token);
        let at = connection.watches.iter().position(same).ok_or(Refusal::Missing)?;
        connection.watches.remove(at);
        Ok(Answer::done())
    }

    fn start(&mut self, id: ConnId, who: Subject) -> Result<Answer, Refusal> {
        let used = self.usage(who.domain, |connection| connection.transactions.len());
        if !who.is_privileged() && used >= self.quota.transactions {
            return Err(Refusal::NoSpace);
        }
        let pending = Pending::new(&self.tree);
        let connection = self.connections.get_mut(&id).ok_or(Refusal::Invalid)?;
        let number = connection.number();
        connection.transactions.insert(number, pending);
        Ok(Answer::text(&number.to_string()))
    }

    fn end(
        &mut self,
        id: ConnId,
        who: Subject,
        number: u32,
        commit: bool,
    ) -> Result<Vec<Fired>, Refusal> {
        let connection = self.connections.get_mut(&id).ok_or(Refusal::Invalid)?;
        let pending = connection.transactions.remove(&number).ok_or(Refusal::Missing)?;
        if !commit {
            return Ok(Vec::new());
        }
        if !pending.holds(&self.tree) {
            return Err(Refusal::Again);
        }
        let mut after = self.tree.clone();
        let fired = pending.apply(&mut after, self.generation());
        let nodes = after.owned(who.domain);
        if !who.is_privileged() && nodes > self.quota.nodes && nodes > self.tree.owned(who.domain) {
            return Err(Refusal::NoSpace);
        }
        self.tree = after;
        Ok(fired)
    }
}

/// What a watch is set on: the absolute path or special name, and how much of its front is hidden.
fn watched(text: &[u8], domain: DomId) -> Result<(String, usize), Refusal> {
    if let Some(name) = path::special(text) {
        return Ok((name.into(), 0));
    }
    let path = path::absolute(text, domain).ok_or(Refusal::Invalid)?;
    let hidden = path.len().saturating_sub(text.len());
    Ok((path, hidden))
}

/// The names of a node's children, each with its end.
fn names(node: &Node) -> Vec<u8> {
    node.children().flat_map(|name| name.bytes().chain(std::iter::once(0))).collect()
}

/// The list of children from `offset` on, as much as fits, after the node's generation. An empty
/// name ends the list.
fn part(node: &Node, offset: usize) -> Result<Vec<u8>, Refusal> {
    let mut payload = format!("{}\0", node.generation).into_bytes();
    let mut at = 0_usize;
    for name in node.children() {
        let end = at.saturating_add(name.len()).saturating_add(1);
        if at >= offset {
            // Room for the name, its end, and the empty name.
            if payload.len().saturating_add(name.len()).saturating_add(2) > PAYLOAD_MAX {
                return Ok(payload);
            }
            payload.extend_from_slice(name.as_bytes());
            payload.push(0);
        }
        at = end;
    }
    if offset > at {
        return Err(Refusal::Invalid);
    }
    payload.push(0);
    Ok(payload)
}

fn listed(permissions: &[Permission]) -> Vec<u8> {
    let strings = permissions.iter().map(wire::permission_string);
    strings.flat_map(|text| text.into_bytes().into_iter().chain(std::iter::once(0))).collect()
}

/// One permission or more, each with its end.
fn permissions(mut payload: &[u8]) -> Option<Vec<Permission>> {
    let mut list = Vec::new();
    while !payload.is_empty() {
        let ([text], rest) = wire::strings(payload)?;
        list.push(wire::parse_permission(text)?);
        payload = rest;
    }
    (!list.is_empty()).then_some(list)
}
