//! What is done for each request.
//!
//! Stage before: the broker's loop has read one whole request. Stage after: the reply is sent, and
//! the descriptors it hands out with it. Domains may ask about memory, events and the
//! store; what controls domains is for connections that are no domain's.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::domain::DomainSpec;
use crate::embedded::frame;
#[cfg(doc)]
use crate::embedded::grant_table::USERS;
use crate::{DomId, Error, HostError};

use super::backing::Made;
use super::book::Lifetime;
use super::message::{Info, Known, Refusal, Reply, Request};
use super::{Broker, channels};

/// The most domains in one reply: with the longest names they stay below a message's limit.
const LISTED: usize = 64;
/// The most domains' memory that one process can use at the same time.
const SHARES: usize = 1024;
/// The most uses of one domain's memory by one process: it needs one, and for a moment another when
/// it maps again what it is just giving up. All of them together are few ([`USERS`]).
const SHARES_OF_ONE: usize = 8;

/// A reply and what goes beside it. Descriptors are copied so that nothing of the broker is
/// borrowed while it is sent.
struct Answer {
    reply: Reply,
    beside: Vec<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, beside: Vec::new() }
    }
}

impl Broker {
    /// Does what is asked and replies; `false` where the connection is not to go on.
    pub(super) fn answer(&mut self, token: u64, request: Request) -> bool {
        let answer = self
            .decide(token, request)
            .unwrap_or_else(|error| Reply::Refused(Refusal::from(&error)).into());
        // `Destroy` may have closed this very connection.
        let Some(connection) = self.connections.get(&token) else { return true };
        let beside: Vec<BorrowedFd<'_>> = answer.beside.iter().map(|fd| fd.as_fd()).collect();
        frame::send(&connection.socket, &answer.reply, &beside, false).is_ok()
    }

    fn decide(&mut self, token: u64, request: Request) -> Result<Answer, Error> {
        match request {
            Request::Join { domain, spec } => {
                return self.join(token, domain, &DomainSpec::from(spec));
            }
            Request::OpenStore => {
                let socket = self.homes.connection(self.domain_of(token)?)?;
                return Ok(Answer { reply: Reply::Done, beside: vec![socket] });
            }
            Request::Share { granter } => return self.share(token, granter),
            Request::Release { share } => self.release(token, share)?,
            Request::Allocate { peer } => {
                let domain = self.domain_of(token)?;
                let peer = number(peer)?;
                if self.keeper.book().get(peer).is_err() && peer != DomId::ZERO {
                    let doing = format!("allocate an event channel for domain {peer}");
                    return Err(HostError::new(doing, Errno::ESRCH as i32).into());
                }
                return opened(self.channels.allocate(domain, peer, token)?);
            }
            Request::Bind { peer, port } => {
                let domain = self.domain_of(token)?;
                return opened(self.channels.bind(domain, number(peer)?, port, token)?);
            }
            Request::Close { port } => {
                self.channels.close(self.domain_of(token)?, port, token)?;
            }
            control => return self.control(token, control).map(Answer::from),
        }
        Ok(Reply::Done.into())
    }

    /// What only the control domain may ask: a connection that joined no other.
    fn control(&mut self, token: u64, request: Request) -> Result<Reply, Error> {
        if let Some(domain) = self.connections.get(&token).and_then(|one| one.domain) {
            let doing = format!("control domains from domain {domain}");
            return Err(HostError::new(doing, Errno::EPERM as i32).into());
        }
        match request {
            Request::Create { spec } => {
                let domain = self.create(&DomainSpec::from(spec), Lifetime::UntilDestroyed)?;
                return Ok(Reply::Created { domain: domain.get() });
            }
            Request::CreateUntilLeft { spec } => {
                let domain = self.create(&DomainSpec::from(spec), Lifetime::UntilLeft)?;
                return Ok(Reply::Created { domain: domain.get() });
            }
            Request::List { after } => {
                let all = self.keeper.list();
                let next = all.iter().filter(|one| after.is_none_or(|after| one.id.get() > after));
                return Ok(Reply::List { domains: next.take(LISTED).map(Known::from).collect() });
            }
            Request::Enter { domain } => {
                let domain = number(domain)?;
                let connection = self.connections.get_mut(&token).ok_or_else(|| lost(domain))?;
                self.keeper.enter(domain, connection.pid)?;
                connection.domain = Some(domain);
            }
            Request::Info => {
                let book = self.keeper.book();
                return Ok(Reply::Info(Info {
                    total_kib: book.total_kib(),
                    free_kib: book.free_kib(),
                    domains: u32::try_from(book.iter().count()).unwrap_or(u32::MAX),
                    unenforced: self.keeper.unenforced().to_vec(),
                }));
            }
            Request::Pause { domain, paused } => self.keeper.pause(number(domain)?, paused)?,
            Request::Destroy { domain } => {
                let domain = number(domain)?;
                self.keeper.book().get(domain)?;
                self.keeper.kill(domain);
                self.end(domain);
            }
            Request::SetTarget { domain, target_kib } => {
                let domain = number(domain)?;
                self.keeper.set_memory_target(domain, target_kib)?;
                let target_kib = self.keeper.book().get(domain)?.target_kib;
                self.backings.set_target(domain, target_kib);
                self.homes.set_target(domain, target_kib);
            }
            Request::SetScheduling { domain, weight, cap } => {
                self.keeper.set_scheduling(number(domain)?, weight, cap)?;
            }
            _ => return Err(HostError::new("answer a request", Errno::ENOSYS as i32).into()),
        }
        Ok(Reply::Done)
    }

    fn create(&mut self, spec: &DomainSpec, lifetime: Lifetime) -> Result<DomId, Error> {
        let domain = self.keeper.create(spec, lifetime)?;
        let spec = &self.keeper.book().get(domain)?.spec;
        if let Err(error) = self.homes.make(domain, spec) {
            self.end(domain);
            return Err(error);
        }
        self.had_domains = true;
        Ok(domain)
    }

    fn join(&mut self, token: u64, known: Option<u16>, spec: &DomainSpec) -> Result<Answer, Error> {
        if let Some(domain) = self.connections.get(&token).and_then(|one| one.domain) {
            let doing = format!("join another domain from domain {domain}");
            return Err(HostError::new(doing, Errno::EBUSY as i32).into());
        }
        let domain = match known {
            Some(known) => number(known)?,
            None => self.create(spec, Lifetime::UntilLeft)?,
        };
        let joined = self.enter(token, domain);
        if joined.is_err() && known.is_none() {
            self.end(domain);
        }
        joined
    }

    fn enter(&mut self, token: u64, domain: DomId) -> Result<Answer, Error> {
        let entry = self.keeper.book().get(domain)?;
        let (kib, target_kib) = (entry.spec.memory_kib, entry.target_kib);
        let store = self.homes.connection(domain)?;
        let (mut beside, mut pages, mut memory) = (Vec::new(), None, None);
        if !self.backings.has(domain) {
            let Made { key, table } = self.backings.make(domain, kib, target_kib)?;
            let handed = self.backings.get(key).ok_or_else(|| lost(domain)).and_then(|made| {
                pages = Some(made.pages);
                Ok([copied(&made.ram)?, table, copied(&made.marks_file)?])
            });
            match handed {
                Ok(handed) => beside.extend(handed),
                Err(error) => {
                    self.backings.retire(key);
                    return Err(error.into());
                }
            }
            memory = Some(key);
        }
        beside.push(store);
        let connection = self.connections.get_mut(&token).ok_or_else(|| lost(domain))?;
        // From here on the connection's end takes all of this back.
        connection.domain = Some(domain);
        connection.memory = memory;
        self.keeper.enter(domain, connection.pid)?;
        Ok(Answer { reply: Reply::Joined { domain: domain.get(), pages }, beside })
    }

    fn share(&mut self, token: u64, granter: u16) -> Result<Answer, Error> {
        self.domain_of(token)?;
        let granter = number(granter)?;
        let connection = self.connections.get_mut(&token).ok_or_else(|| lost(granter))?;
        if connection.shares.len() >= SHARES {
            let doing = format!("use the memory of domain {granter} beside {SHARES} others'");
            return Err(HostError::new(doing, Errno::EMFILE as i32).into());
        }
        let (share, backing) = self.backings.share(granter)?;
        let same = connection.shares.values().filter(|one| one.backing == share.backing).count();
        if same >= SHARES_OF_ONE {
            self.backings.release(share);
            let doing = format!("use the memory of domain {granter} {same} times over");
            return Err(HostError::new(doing, Errno::EUSERS as i32).into());
        }
        let pages = backing.pages;
        let handed = copied(&backing.ram).and_then(|ram| {
            Ok(vec![ram, copied(&backing.table_to_read)?, copied(&backing.marks_file)?])
        });
        match handed {
            Ok(beside) => {
                let key =
                    connection.shares.last_key_value().map_or(0, |(key, _)| key.wrapping_add(1));
                connection.shares.insert(key, share);
                Ok(Answer { reply: Reply::Shared { share: key, slot: share.slot, pages }, beside })
            }
            Err(error) => {
                self.backings.release(share);
                Err(error.into())
            }
        }
    }

    fn release(&mut self, token: u64, share: u64) -> Result<(), Error> {
        let connection = self.connections.get_mut(&token);
        let Some(share) = connection.and_then(|one| one.shares.remove(&share)) else {
            return Err(HostError::new("give up a use of memory", Errno::EINVAL as i32).into());
        };
        self.give_up(share);
        Ok(())
    }

    fn domain_of(&self, token: u64) -> Result<DomId, Error> {
        self.connections.get(&token).and_then(|one| one.domain).ok_or_else(|| {
            HostError::new("ask as a domain without having joined one", Errno::EPERM as i32).into()
        })
    }
}

fn opened(opened: channels::Opened<'_>) -> Result<Answer, Error> {
    let (own, peer) = opened.wire.bells_of(opened.end);
    let beside = vec![copied(&opened.wire.file)?, copied(own)?, copied(peer)?];
    let end = u32::try_from(opened.end).unwrap_or(0);
    Ok(Answer { reply: Reply::Channel { port: opened.port, end }, beside })
}

fn copied(file: &OwnedFd) -> Result<OwnedFd, HostError> {
    file.try_clone().map_err(|error| HostError::from_io("hand out a descriptor", &error))
}

fn number(domain: u16) -> Result<DomId, Error> {
    DomId::new(domain).ok_or_else(|| {
        let problem = "is no domain's number";
        crate::ConfigError::new("domain", domain, problem).into()
    })
}

fn lost(domain: DomId) -> HostError {
    HostError::new(format!("look after domain {domain}"), Errno::EIO as i32)
}
