//! The loop that carries bytes between sockets and the [`Server`].
//!
//! One thread, level-triggered. A connection gets as many bytes read in one turn as one chunk, so
//! that none can keep the others waiting; while it does not read its replies, nothing is read from
//! it. Whoever can open the listening socket and has this process's user id, or root's, speaks for
//! domain 0; a domain's own connection is handed over by whoever knows which domain it is
//! ([`Handle::add_connection`]).

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use crate::xenstore::Client;
use crate::xenstore::server::{ConnId, Quota, Server};
use crate::{DomId, Error, HostError};

/// Bytes read from one connection in one turn.
const CHUNK: usize = 8 * 1024;

/// How long to let new connections wait, in milliseconds, after one could not be accepted for want
/// of descriptors or memory: the socket stays readable, and would be asked again at once.
const ACCEPT_PAUSE: u16 = 100;

/// A store that is running. Dropping it ends it, and all its connections.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// What can be told to a running store.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Readable when the loop should look at the state again.
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    server: Server,
    peers: BTreeMap<ConnId, Peer>,
    stopping: bool,
}

#[derive(Debug)]
struct Peer {
    stream: Arc<UnixStream>,
    /// Read, but not yet taken by the server.
    unread: Vec<u8>,
}

impl Service {
    /// Runs a store in a thread of its own. Who connects to `listener` is domain 0.
    ///
    /// # Errors
    ///
    /// Descriptors or threads cannot be had.
    pub fn spawn(listener: UnixListener) -> Result<Self, HostError> {
        Self::start(Some(listener), Quota::default())
    }

    /// Runs a store that nobody can connect to but by what is [handed over](Handle::add_connection).
    ///
    /// # Errors
    ///
    /// Descriptors or threads cannot be had.
    pub fn spawn_private() -> Result<Self, HostError> {
        Self::start(None, Quota::default())
    }

    fn start(listener: Option<UnixListener>, quota: Quota) -> Result<Self, HostError> {
        let failed = |error: io::Error| HostError::from_io("start the store", &error);
        if let Some(listener) = &listener {
            listener.set_nonblocking(true).map_err(failed)?;
        }
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let state = Mutex::new(State { server: Server::new(quota), ..State::default() });
        let handle = Handle { shared: Arc::new(Shared { state, wake }) };
        let shared = Arc::clone(&handle.shared);
        let thread = thread::Builder::new()
            .name("xenstore".into())
            .spawn(move || shared.run(listener.as_ref()))
            .map_err(failed)?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A way to tell it something, from any thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.handle.shared.state().stopping = true;
        self.handle.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported when it happened, and there is nothing left to undo.
            let _ = thread.join();
        }
    }
}

impl Handle {
    /// Serves `domain` on that socket from now on.
    ///
    /// # Errors
    ///
    /// The domain has too many connections, or the store has ended.
    pub fn add_connection(&self, stream: UnixStream, domain: DomId) -> Result<(), Error> {
        let doing = "connect to the store";
        stream.set_nonblocking(true).map_err(|error| HostError::from_io(doing, &error))?;
        let mut state = self.shared.state();
        if state.stopping {
            return Err(HostError::new(doing, Errno::ECONNREFUSED as i32).into());
        }
        state.add(stream, domain)?;
        drop(state);
        self.shared.wake();
        Ok(())
    }

    /// See [`Server::introduce`].
    pub fn introduce(&self, domain: DomId) {
        self.shared.state().server.introduce(domain);
        self.shared.wake();
    }

    /// See [`Server::release`].
    pub fn release(&self, domain: DomId) {
        self.shared.state().server.release(domain);
        self.shared.wake();
    }

    /// A client that speaks for `domain`; for [`DomId::ZERO`] one that may do everything.
    ///
    /// # Errors
    ///
    /// Descriptors cannot be had, or as in [`add_connection`](Self::add_connection).
    pub fn client(&self, domain: DomId) -> Result<Client, Error> {
        let pair = UnixStream::pair();
        let (ours, theirs) =
            pair.map_err(|error| HostError::from_io("connect to the store", &error))?;
        self.add_connection(theirs, domain)?;
        Ok(Client::from_stream(ours)?)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the loop is about to wake anyway.
        let _ = self.wake.write(1);
    }

    fn run(&self, listener: Option<&UnixListener>) {
        let _ending = Ending(self);
        let mut pause = false;
        loop {
            let waiting = {
                let mut state = self.state();
                if state.stopping {
                    return;
                }
                state.waiting()
            };
            let listener = listener.filter(|_| !pause);
            let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            fds.extend(
                waiting.iter().map(|(_, stream, events)| PollFd::new(stream.as_fd(), *events)),
            );
            fds.extend(listener.map(|own| PollFd::new(own.as_fd(), PollFlags::POLLIN)));
            let timeout = if pause { PollTimeout::from(ACCEPT_PAUSE) } else { PollTimeout::NONE };
            // An interrupted wait says nothing of any descriptor, so the turn is an empty one.
            let _ = poll(&mut fds, timeout);
            let _ = self.wake.read();
            let ready: Vec<PollFlags> =
                fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
            drop(fds);

            let mut state = self.state();
            for ((id, _, _), ready) in waiting.iter().zip(ready.iter().skip(1)) {
                if !ready.is_empty() {
                    state.receive(*id, *ready);
                }
            }
            // `last` is the listener's where it was waited for, which alone has one more.
            let expected = waiting.len().saturating_add(1);
            pause = match listener {
                Some(listener) if ready.get(expected).is_some_and(|ready| !ready.is_empty()) => {
                    !state.accept(listener)
                }
                _ => false,
            };
            state.flush();
        }
    }
}

/// Ends all connections when the loop ends, however it does: a client whose connection stayed open
/// would wait for its reply for ever.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.stopping = true;
        state.peers.clear();
    }
}

impl State {
    fn add(&mut self, stream: UnixStream, domain: DomId) -> Result<(), Error> {
        let id = self.server.connect(domain)?;
        self.peers.insert(id, Peer { stream: Arc::new(stream), unread: Vec::new() });
        Ok(())
    }

    /// What to wait for on each connection. One that was released is let go of.
    fn waiting(&mut self) -> Vec<(ConnId, Arc<UnixStream>, PollFlags)> {
        let Self { server, peers, .. } = self;
        peers.retain(|id, _| server.is_connected(*id));
        peers
            .iter()
            .map(|(id, peer)| {
                let mut events = PollFlags::empty();
                if server.wants_input(*id) && peer.unread.is_empty() {
                    events |= PollFlags::POLLIN;
                }
                if !server.output(*id).is_empty() {
                    events |= PollFlags::POLLOUT;
                }
                (*id, Arc::clone(&peer.stream), events)
            })
            .collect()
    }

    /// Reads what a connection has sent.
    fn receive(&mut self, id: ConnId, ready: PollFlags) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let unheard = ready.contains(PollFlags::POLLERR)
            || ready.contains(PollFlags::POLLHUP) && !self.server.wants_input(id);
        if unheard {
            // It can neither be read from nor written to.
            return self.close(id);
        }
        if !ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) || !peer.unread.is_empty() {
            return;
        }
        let mut chunk = [0; CHUNK];
        match (&*peer.stream).read(&mut chunk) {
            Ok(0) => self.close(id),
            Ok(len) => {
                peer.unread.extend_from_slice(chunk.get(..len).unwrap_or(&[]));
                self.handle(id);
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => self.close(id),
        }
    }

    /// Hands what was read to the server.
    fn handle(&mut self, id: ConnId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match self.server.handle(id, &peer.unread) {
            Ok(taken) => drop(peer.unread.drain(..taken.min(peer.unread.len()))),
            Err(_) => self.close(id),
        }
    }

    /// Sends what can be sent to anybody, which may let requests go on that were waiting for it.
    fn flush(&mut self) {
        let ids: Vec<ConnId> = self.peers.keys().copied().collect();
        for id in ids {
            self.send(id);
            if self.peers.get(&id).is_some_and(|peer| !peer.unread.is_empty()) {
                self.handle(id);
            }
        }
    }

    fn send(&mut self, id: ConnId) {
        while let Some(peer) = self.peers.get(&id) {
            let output = self.server.output(id);
            if output.is_empty() {
                return;
            }
            match (&*peer.stream).write(output) {
                Ok(len) => self.server.sent(id, len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => {}
                Err(_) => self.close(id),
            }
        }
    }

    fn close(&mut self, id: ConnId) {
        self.server.disconnect(id);
        self.peers.remove(&id);
    }

    /// Takes in who is waiting; `false` where that should be tried again later.
    fn accept(&mut self, listener: &UnixListener) -> bool {
        match listener.accept() {
            Ok((stream, _)) => {
                if speaks_for_control(&stream) && stream.set_nonblocking(true).is_ok() {
                    // The control domain may have any number of connections.
                    let _ = self.add(stream, DomId::ZERO);
                }
                true
            }
            Err(error) => is_passing(&error) || error.kind() == ErrorKind::ConnectionAborted,
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn speaks_for_control(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}
