//! Being a domain: the connection to the broker, and what it gave us.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{Shutdown, getsockopt, shutdown};

use crate::domain::DomainSpec;
use crate::xenstore::Client;
use crate::{DomId, Error, HostError};

use super::broker::message::{Refusal, Reply, Request, Spec};
use super::frame;
use super::pages::OwnMemory;
use super::peer::{Peer, Shared};
use super::place::Place;

/// A connection to the broker: one question, one answer.
#[derive(Debug)]
pub(crate) struct Session {
    socket: Mutex<OwnedFd>,
}

impl Session {
    /// Connects to the hypervisor at `place`.
    pub(crate) fn connect(place: &Place) -> Result<Self, HostError> {
        Ok(Self { socket: Mutex::new(frame::connect(&place.control_socket())?) })
    }

    /// Asks the broker, and waits for what it says.
    pub(crate) fn ask(&self, request: &Request) -> nix::Result<(Reply, Vec<OwnedFd>)> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = frame::send(&*socket, request, &[], true)
            .and_then(|()| frame::receive_beside(&*socket))
            .and_then(|answer| answer.ok_or(Errno::ECONNRESET));
        if answer.is_err() {
            // Questions and answers may be out of step now: better no answer than a wrong one.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        answer
    }

    /// The process that listened for this connection.
    pub(crate) fn peer_pid(&self) -> nix::Result<i32> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(getsockopt(&*socket, PeerCredentials)?.pid())
    }

    /// The connection itself, by which this process stays what it has become.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.socket.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }
}

/// A domain that this process joined.
///
/// Clones are the same domain. It lives as long as a clone, a mapping or an event channel of it
/// does, or until [`leave`](Self::leave); its memory can be reached as long as anything of it is
/// held.
#[derive(Clone, Debug)]
pub struct Domain {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: DomId,
    session: Arc<Session>,
    store: Client,
    memory: Option<Arc<OwnMemory>>,
    peers: RwLock<BTreeMap<DomId, Weak<Peer>>>,
    /// Held while the broker is asked for a peer's memory, so that it is asked once.
    asking: Mutex<()>,
    place: Place,
}

impl Domain {
    /// Makes a new domain at `place` and joins it. It ends when its last process leaves it.
    ///
    /// # Errors
    ///
    /// No hypervisor runs there, or it refuses: the memory does not fit, the name is taken.
    pub fn join(place: &Place, spec: &DomainSpec) -> Result<Self, Error> {
        Self::join_as(place, None, spec)
    }

    /// Joins the domain `id`, which was created before, as one more of its processes.
    ///
    /// The first of a domain's processes has its memory; the others cannot offer pages, but use
    /// what was granted to the domain, and have event channels and the store.
    ///
    /// # Errors
    ///
    /// No hypervisor runs there, or there is no such domain.
    pub fn enter(place: &Place, id: DomId) -> Result<Self, Error> {
        Self::join_as(place, Some(id), &DomainSpec::new(""))
    }

    fn join_as(place: &Place, id: Option<DomId>, spec: &DomainSpec) -> Result<Self, Error> {
        let session = Session::connect(place)?;
        let request = Request::Join { domain: id.map(DomId::get), spec: Spec::from(spec) };
        let doing = || match id {
            Some(id) => format!("join domain {id}"),
            None => format!("join as domain '{}'", spec.name),
        };
        let (reply, beside) = session.ask(&request).map_err(|errno| failed(doing(), errno))?;
        let (domain, pages) = match reply {
            Reply::Joined { domain, pages } => (domain, pages),
            Reply::Refused(refusal) => return Err(refusal.into()),
            _ => return Err(unexpected(doing()).into()),
        };
        let id = DomId::new(domain).ok_or_else(|| unexpected(doing()))?;
        let mut beside = beside.into_iter();
        let memory = match pages {
            None => None,
            Some(pages) => {
                let (Some(ram), Some(table), Some(marks)) =
                    (beside.next(), beside.next(), beside.next())
                else {
                    return Err(unexpected(doing()).into());
                };
                Some(Arc::new(OwnMemory::new(id, pages, &ram, &table, &marks)?))
            }
        };
        let store = beside.next().ok_or_else(|| unexpected(doing()))?;
        let inner = Inner {
            id,
            store: Client::from_stream(UnixStream::from(store))?,
            session: Arc::new(session),
            memory,
            peers: RwLock::default(),
            asking: Mutex::default(),
            place: place.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> DomId {
        self.inner.id
    }

    /// Where its hypervisor runs.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.inner.place
    }

    /// Pages of its memory that are allocated, or set aside because they are still granted.
    #[must_use]
    pub fn pages_in_use(&self) -> u32 {
        self.inner.memory.as_ref().map_or(0, |memory| memory.used())
    }

    /// Leaves the domain at once, as the end of the process would: event channels close, and what
    /// it granted can no longer be mapped. What is mapped stays reachable.
    pub fn leave(&self) {
        self.inner.session.end();
    }

    pub(crate) fn store(&self) -> &Client {
        &self.inner.store
    }

    pub(crate) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.inner.session)
    }

    /// The domain's own memory.
    pub(crate) fn memory(&self) -> Result<&Arc<OwnMemory>, HostError> {
        self.inner.memory.as_ref().ok_or_else(|| {
            let doing =
                format!("offer memory of domain {}: another of its processes has it", self.id());
            HostError::new(doing, Errno::EBUSY as i32)
        })
    }

    /// Asks the broker; a refusal becomes the host's error.
    pub(crate) fn ask(
        &self,
        request: &Request,
        doing: &dyn Fn() -> String,
    ) -> Result<(Reply, Vec<OwnedFd>), HostError> {
        match self.inner.session.ask(request) {
            Ok((Reply::Refused(refusal), _)) => Err(match refusal {
                Refusal::Host { doing, errno } => HostError::new(doing, errno),
                Refusal::Config { problem, .. } => {
                    HostError::new(format!("{}: {problem}", doing()), Errno::EINVAL as i32)
                }
            }),
            Ok(answer) => Ok(answer),
            Err(errno) => Err(failed(doing(), errno)),
        }
    }

    /// The memory of `domain`; `None` where there is no such domain.
    pub(crate) fn peer(&self, domain: DomId) -> Result<Option<Arc<Peer>>, HostError> {
        if let Some(peer) = self.known_peer(domain) {
            return Ok(Some(peer));
        }
        let _asking = self.inner.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = self.known_peer(domain) {
            return Ok(Some(peer));
        }
        let doing = || format!("use the memory of domain {domain}");
        let asked = self.ask(&Request::Share { granter: domain.get() }, &doing);
        let (reply, beside) = match asked {
            Err(error) if error.errno == Errno::ESRCH as i32 => return Ok(None),
            other => other?,
        };
        let (Reply::Shared { share, slot, pages }, Ok([ram, table, marks])) =
            (reply, <[OwnedFd; 3]>::try_from(beside))
        else {
            return Err(unexpected(doing()));
        };
        let shared = Shared { domain, share, slot, pages, ram, table, marks };
        let peer = Arc::new(Peer::new(self.session(), self.id(), shared)?);
        let mut peers = self.inner.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|_, known| known.strong_count() > 0);
        peers.insert(domain, Arc::downgrade(&peer));
        Ok(Some(peer))
    }

    fn known_peer(&self, domain: DomId) -> Option<Arc<Peer>> {
        let peers = self.inner.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.get(&domain)?.upgrade()?;
        drop(peers);
        peer.alive().then_some(peer)
    }
}

fn failed(doing: String, errno: Errno) -> HostError {
    HostError::new(doing, errno as i32)
}

/// The broker's answer does not fit the question.
pub(crate) fn unexpected(doing: String) -> HostError {
    HostError::new(doing, Errno::EPROTO as i32)
}
