//! One thread that serves some clients with one queue.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use anyhow::Context as _;
use blkfront::buffer::Either;
use blkfront::host::{HostBuffer, HostQueue};
use blkfront::{Completion, IoError, Operation, Private, Reason, Request};
use hypervisor::frontend::host::Stop;
use hypervisor::host::Domain;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::nbd::connection::{Command, Connection, Over};
use crate::nbd::wire::{command, errno};
use crate::transfer::private;

/// A client's socket.
pub(crate) trait Stream: Read + Write + AsFd + Send {}

impl<T: Read + Write + AsFd + Send> Stream for T {}

/// Commands that one client may have under way.
const COMMANDS: usize = 128;
/// Bytes that one client may have under way, answers not yet sent included.
const BYTES: usize = 64 << 20;
/// Bytes of zeroes written at a time.
const ZEROES: u64 = 1 << 20;
/// Reads from one client before the others get their turn.
const TURN: usize = 64;

struct Client {
    stream: Box<dyn Stream>,
    connection: Connection,
    commands: usize,
    bytes: usize,
    /// Nothing more is read from it; it goes when everything was answered.
    leaving: bool,
    /// It is gone.
    dead: bool,
}

impl Client {
    fn may_read(&self) -> bool {
        let held = self.bytes.saturating_add(self.connection.output().len());
        !self.leaving && !self.dead && self.commands < COMMANDS && held < BYTES
    }

    fn flush(&mut self) {
        while !self.dead && !self.connection.output().is_empty() {
            match self.stream.write(self.connection.output()) {
                Ok(0) => self.dead = true,
                Ok(count) => self.connection.sent(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.dead = true,
            }
        }
    }
}

/// A command under way.
struct Pending {
    client: u64,
    cookie: u64,
    /// Zeroes yet to be written: from where, to where.
    zeroes: Option<(u64, u64)>,
    /// Whether a flush has to follow.
    durable: bool,
    bytes: usize,
}

pub(crate) struct Worker<D: Domain> {
    queue: HostQueue<D>,
    new: Receiver<(Box<dyn Stream>, Connection)>,
    bell: Arc<EventFd>,
    stop: Stop,
    clients: HashMap<u64, Client>,
    pending: HashMap<u64, Pending>,
    /// Requests that the queue had no room for.
    backlog: VecDeque<Request<HostBuffer<D>>>,
    number: u64,
    done: Vec<Completion<HostBuffer<D>>>,
}

impl<D: Domain> Worker<D> {
    pub(crate) fn new(
        queue: HostQueue<D>,
        new: Receiver<(Box<dyn Stream>, Connection)>,
        bell: Arc<EventFd>,
        stop: Stop,
    ) -> Self {
        Self {
            queue,
            new,
            bell,
            stop,
            clients: HashMap::new(),
            pending: HashMap::new(),
            backlog: VecDeque::new(),
            number: 0,
            done: Vec::new(),
        }
    }

    /// Serves until it is told to stop; then answers what is under way.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        loop {
            while let Ok((stream, connection)) = self.new.try_recv() {
                let client = Client {
                    stream,
                    connection,
                    commands: 0,
                    bytes: 0,
                    leaving: false,
                    dead: false,
                };
                let number = self.number();
                self.clients.insert(number, client);
            }
            self.push();
            self.complete();
            for client in self.clients.values_mut() {
                client.leaving |= self.stop.asked();
                client.flush();
            }
            self.clients.retain(|_, client| {
                let answered = client.commands == 0 && client.connection.output().is_empty();
                !(client.dead || client.leaving && answered)
            });
            if self.stop.asked() && self.queue.held() == 0 && self.backlog.is_empty() {
                // Clients that do not take their answers are not waited for.
                return Ok(());
            }
            // What was done while requests were put in is for the next turn: there is no event to
            // come for it.
            let busy = self.queue.arm() || !self.done.is_empty();
            let ready = self.sleep(busy)?;
            for number in ready {
                self.receive(number);
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Waits until there is something to do; gives the clients that have something to say.
    fn sleep(&self, busy: bool) -> anyhow::Result<Vec<u64>> {
        let timeout = if busy { PollTimeout::ZERO } else { PollTimeout::NONE };
        let wake = self.bell.as_fd();
        let clients: Vec<(u64, BorrowedFd<'_>, PollFlags)> = self
            .clients
            .iter()
            .map(|(number, client)| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::POLLIN, client.may_read());
                flags.set(PollFlags::POLLOUT, !client.connection.output().is_empty());
                (*number, client.stream.as_fd(), flags)
            })
            .collect();
        let ready = self.queue.with_fds(|disk| {
            let mut fds: Vec<PollFd<'_>> =
                clients.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
            fds.push(PollFd::new(wake, PollFlags::POLLIN));
            fds.extend(disk.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            // A connection that broke is read from, too: that is how one learns of it.
            let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
            Ok(clients.iter().zip(&fds).filter(|(_, fd)| ready(fd)).map(|(c, _)| c.0).collect())
        });
        while let Err(Errno::EINTR) = self.bell.read() {}
        ready.context("wait for clients and the disk")
    }

    /// Takes what a client sends.
    fn receive(&mut self, number: u64) {
        for _ in 0..TURN {
            let Some(client) = self.clients.get_mut(&number) else { return };
            if !client.may_read() {
                return;
            }
            let read = client.stream.read(client.connection.room());
            let command = match read {
                Ok(0) => {
                    client.leaving = true;
                    return;
                }
                Ok(count) => client.connection.filled(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    client.dead = true;
                    return;
                }
            };
            match command {
                Ok(None) => {}
                Ok(Some(command)) => self.begin(number, command),
                Err(over) => {
                    if let Over::Nonsense(what) = over {
                        tracing::warn!("a client sent {what}");
                    }
                    client.leaving = true;
                    return;
                }
            }
        }
    }

    fn begin(&mut self, number: u64, command: Command) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let header = command.header;
        if let Err(error) = client.connection.check(&header) {
            client.connection.answer(header.cookie, Err(error));
            return;
        }
        let len = header.len as usize;
        let mut pending = Pending {
            client: number,
            cookie: header.cookie,
            zeroes: None,
            durable: header.flags & command::FLAG_FUA != 0,
            bytes: 0,
        };
        let nothing = || private(Vec::new());
        let (operation, buffer) = match header.kind {
            command::READ => {
                pending.bytes = len;
                pending.durable = false;
                (Operation::Read, private(vec![0; len]))
            }
            command::WRITE => {
                pending.bytes = len;
                (Operation::Write, private(command.data))
            }
            command::TRIM => {
                (Operation::Discard { len: header.len.into(), secure: false }, nothing())
            }
            command::WRITE_ZEROES => {
                let end = header.offset.saturating_add(header.len.into());
                let piece = u64::from(header.len).min(ZEROES);
                pending.zeroes = Some((header.offset.saturating_add(piece), end));
                pending.bytes = usize::try_from(piece).unwrap_or(0);
                (Operation::Write, private(vec![0; pending.bytes]))
            }
            _ => {
                pending.durable = false;
                (Operation::Flush, nothing())
            }
        };
        client.commands = client.commands.saturating_add(1);
        client.bytes = client.bytes.saturating_add(pending.bytes);
        let tag = self.number();
        self.pending.insert(tag, pending);
        self.backlog.push_back(Request { operation, offset: header.offset, buffer, tag });
    }

    /// Gives the queue what it has room for.
    fn push(&mut self) {
        while let Err(rejected) = self.queue.submit_all(&mut self.backlog) {
            let error = match rejected.reason {
                Reason::ReadOnly => errno::PERMISSION,
                Reason::Unsupported => errno::NOT_SUPPORTED,
                Reason::Detached | Reason::NotConnected => errno::SHUTDOWN,
                _ => errno::INVALID,
            };
            self.end(rejected.request.tag, Err(error));
        }
    }

    fn complete(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.queue.service(&mut done);
        for Completion { request, result } in done.drain(..) {
            let error = result.err().map(|error| match error {
                IoError::Unsupported => errno::NOT_SUPPORTED,
                IoError::Detached | IoError::Untrusted => errno::SHUTDOWN,
                _ => errno::IO,
            });
            if let Some(error) = error {
                self.end(request.tag, Err(error));
                continue;
            }
            if let Some(next) = self.follow_up(request.tag) {
                self.backlog.push_back(next);
                continue;
            }
            match request.buffer {
                Either::Private(bytes) if request.operation == Operation::Read => {
                    self.end(request.tag, Ok(bytes.as_slice()));
                }
                _ => self.end(request.tag, Ok(&[])),
            }
        }
        self.done = done;
        if !self.backlog.is_empty() {
            self.push();
        }
        // What was put in just now goes out before anybody sleeps.
        self.queue.service(&mut self.done);
    }

    /// What a command needs besides what was done of it.
    fn follow_up(&mut self, tag: u64) -> Option<Request<HostBuffer<D>>> {
        let pending = self.pending.get_mut(&tag)?;
        if let Some((from, end)) = pending.zeroes {
            let piece = end.saturating_sub(from).min(ZEROES);
            if piece > 0 {
                pending.zeroes = Some((from.saturating_add(piece), end));
                let zeroes = vec![0; usize::try_from(piece).unwrap_or(0)];
                return Some(Request::write(from, private(zeroes), tag));
            }
        }
        if std::mem::take(&mut pending.durable) {
            return Some(Request::flush(Either::Private(Private::nothing()), tag));
        }
        None
    }

    fn end(&mut self, tag: u64, result: Result<&[u8], u32>) {
        let Some(pending) = self.pending.remove(&tag) else { return };
        let Some(client) = self.clients.get_mut(&pending.client) else { return };
        client.commands = client.commands.saturating_sub(1);
        client.bytes = client.bytes.saturating_sub(pending.bytes);
        client.connection.answer(pending.cookie, result);
    }
}
