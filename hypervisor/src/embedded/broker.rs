//! The process that owns memory and CPU shares, and introduces domains to each other.
//!
//! ```text
//!   door ──> connection ──> answer ──┬─> keeper    who lives, what each was promised, CPU
//!   (accept)  (one packet)           ├─> backing   RAM, grant tables, who uses them
//!                                    ├─> channels  event ports
//!                                    └─> homes     what the store knows of each domain
//! ```
//!
//! One thread, level-triggered, one request of each ready connection in a turn. Nothing here waits
//! for a client: a connection that does not take its reply is closed. Every request comes from a
//! process that may be hostile; it can be refused or be disconnected, and neither changes
//! anything for others. When a connection ends, all that it had ends with it.

mod answer;
mod backing;
pub(crate) mod book;
mod channels;
pub(crate) mod cpu;
mod door;
mod homes;
pub(crate) mod keeper;
pub(crate) mod message;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::xenstore::server::Service;
use crate::{ConfigError, DomId, Error, HostError};

use super::frame;
use super::place::{Lock, Place};
use backing::{Backings, Share};
use book::Left;
use channels::Channels;
use cpu::Shares;
use door::Door;
use homes::Homes;
use keeper::Keeper;

/// How the broker runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Where it is found.
    pub place: Place,
    /// The memory it gives to domains, in KiB; `None` for three quarters of the machine's.
    pub memory_kib: Option<u64>,
    /// End when the last domain has gone.
    pub until_empty: bool,
    /// Hold domains to their shares by cgroups. Without, they are only counted.
    pub groups: bool,
}

impl Options {
    /// At `place`, with the usual memory, until told to stop.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, memory_kib: None, until_empty: false, groups: true }
    }
}

/// A broker that is ready to run.
#[derive(Debug)]
pub struct Broker {
    place: Place,
    door: Door,
    epoll: Epoll,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    keeper: Keeper,
    backings: Backings,
    channels: Channels,
    homes: Homes,
    until_empty: bool,
    /// There was a domain once.
    had_domains: bool,
    buffer: Vec<u8>,
    // Last, so that the sockets are gone before another hypervisor may take the place.
    _lock: Lock,
}

/// A process that is connected.
#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    pid: i32,
    domain: Option<DomId>,
    /// The memory that it has as its domain's first process.
    memory: Option<u64>,
    shares: BTreeMap<u64, Share>,
}

/// How long a hypervisor that is to end when it is empty waits for its first domain.
const FIRST_DOMAIN: Duration = Duration::from_secs(60);
/// Tokens of what is waited for that is no connection; those count from [`FIRST`].
const DOOR: u64 = 0;
const STOP: u64 = 1;
const FIRST: u64 = 2;

impl Broker {
    /// Takes its place and starts to listen there.
    ///
    /// # Errors
    ///
    /// Another hypervisor runs there, or the folder, the sockets or the store cannot be made.
    pub fn start(options: &Options) -> Result<Self, Error> {
        match options.place.lock()? {
            Some(lock) => Self::start_locked(options, lock),
            None => {
                let shown = options.place.folder().display();
                let problem = "another hypervisor runs there; name another folder with DOMKIT_RUN";
                Err(ConfigError::new("runtime folder", shown, problem).into())
            }
        }
    }

    /// As [`start`](Self::start), by who holds the lock of its place already.
    ///
    /// # Errors
    ///
    /// The folder, the sockets or the store cannot be made.
    pub fn start_locked(options: &Options, lock: Lock) -> Result<Self, Error> {
        let place = options.place.clone();
        raise_descriptor_limit();
        let memory_kib = match options.memory_kib {
            Some(kib) => kib,
            None => keeper::default_total_kib()?,
        };
        let shares = if options.groups { Shares::open() } else { Shares::without_groups() };
        // Left by a hypervisor that was killed; the lock says that nobody listens there.
        let store_socket = place.store_socket();
        let _ = std::fs::remove_file(&store_socket);
        let _ = std::fs::remove_file(place.control_socket());
        let listener = UnixListener::bind(&store_socket).map_err(|error| {
            HostError::from_io(format!("listen at {}", store_socket.display()), &error)
        })?;
        let homes = Homes::new(Service::spawn(listener)?)?;
        let door = Door::open(&place.control_socket())?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(waiting)?;
        epoll.add(&door, EpollEvent::new(EpollFlags::EPOLLIN, DOOR)).map_err(waiting)?;
        Ok(Self {
            place,
            door,
            epoll,
            connections: BTreeMap::new(),
            next: FIRST,
            keeper: Keeper::new(memory_kib, shares),
            backings: Backings::default(),
            channels: Channels::default(),
            homes,
            until_empty: options.until_empty,
            had_domains: false,
            buffer: Vec::new(),
            _lock: lock,
        })
    }

    /// What cannot be enforced on this machine, each as one sentence.
    #[must_use]
    pub fn unenforced(&self) -> &[String] {
        self.keeper.unenforced()
    }

    /// Serves until `stop` polls readable or, if so asked, the last domain has gone. All domains
    /// end with it.
    ///
    /// # Errors
    ///
    /// Descriptors cannot be waited for.
    pub fn run(mut self, stop: impl AsFd) -> Result<(), HostError> {
        self.epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP)).map_err(waiting)?;
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Ok(0) if self.is_deserted() => return Ok(()),
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(waiting(errno)),
            };
            for event in events.get(..count).unwrap_or(&[]) {
                match event.data() {
                    STOP => return Ok(()),
                    DOOR => self.accept(),
                    token => self.serve(token),
                }
            }
            if self.had_domains && self.is_deserted() {
                return Ok(());
            }
        }
    }

    /// Whether nobody is here any more, where that is the end. A tool or a program that is about
    /// to join a domain counts too: it was told that there is a hypervisor.
    fn is_deserted(&self) -> bool {
        let empty = self.connections.is_empty() && self.keeper.book().living() == 0;
        self.until_empty && empty
    }

    /// How long to wait for something to happen.
    fn patience(&self) -> EpollTimeout {
        if self.is_deserted() {
            EpollTimeout::try_from(FIRST_DOMAIN).unwrap_or(EpollTimeout::NONE)
        } else {
            EpollTimeout::NONE
        }
    }

    fn accept(&mut self) {
        let Some(visitor) = self.door.accept(self.connections.len()) else { return };
        let token = self.next;
        let waited = EpollEvent::new(EpollFlags::EPOLLIN, token);
        if self.epoll.add(&visitor.socket, waited).is_err() {
            return;
        }
        self.next = self.next.wrapping_add(1).max(FIRST);
        let connection = Connection {
            socket: visitor.socket,
            pid: visitor.pid,
            domain: None,
            memory: None,
            shares: BTreeMap::new(),
        };
        self.connections.insert(token, connection);
    }

    fn serve(&mut self, token: u64) {
        // It may have been closed by what was done for another in this same turn.
        let Some(connection) = self.connections.get(&token) else { return };
        match frame::receive(&connection.socket, &mut self.buffer) {
            Ok(Some(request)) => {
                if !self.answer(token, request) {
                    self.close(token);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(None) | Err(_) => self.close(token),
        }
    }

    /// A connection is over: what it used is given up, and it leaves its domain.
    fn close(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else { return };
        let _ = self.epoll.delete(&connection.socket);
        for share in connection.shares.values() {
            self.give_up(*share);
        }
        let Some(domain) = connection.domain else { return };
        self.channels.close_all(domain, token);
        if let Some(memory) = connection.memory {
            self.backings.retire(memory);
        }
        if self.keeper.leave(domain, connection.pid) == Left::Ended {
            self.end(domain);
        }
        self.bury_if_unused(domain);
    }

    /// A domain is over, whether or not processes of it are still connected.
    fn end(&mut self, domain: DomId) {
        let members: Vec<u64> = self.members(domain).collect();
        for token in &members {
            self.channels.close_all(domain, *token);
            if let Some(memory) = self.connections.get_mut(token).and_then(|one| one.memory.take())
            {
                self.backings.retire(memory);
            }
        }
        let in_use = self.backings.lingers(domain);
        // It was there: either it was asked for by number just now, or its last process left it.
        let _ = self.keeper.end(domain, in_use);
        self.homes.remove(domain);
        for token in members {
            self.close(token);
        }
    }

    fn members(&self, domain: DomId) -> impl Iterator<Item = u64> {
        let of =
            move |(token, one): (&u64, &Connection)| (one.domain == Some(domain)).then_some(*token);
        self.connections.iter().filter_map(of)
    }

    fn give_up(&mut self, share: Share) {
        if let Some(domain) = self.backings.release(share) {
            self.bury_if_unused(domain);
        }
    }

    fn bury_if_unused(&mut self, domain: DomId) {
        if !self.backings.lingers(domain) {
            self.keeper.bury(domain);
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.place.control_socket());
        let _ = std::fs::remove_file(self.place.store_socket());
    }
}

fn waiting(errno: Errno) -> HostError {
    HostError::new("wait for domains", errno as i32)
}

/// Each domain and each event channel costs descriptors; the usual limit is meant for other
/// programs. Where it cannot be raised, fewer fit, and whoever comes later is refused.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
