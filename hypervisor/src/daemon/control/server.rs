//! The daemon's side: a thread that listens, and one for each of a few clients.
//!
//! A client has ten seconds for each line and may send 4096 bytes in one; there are at most sixteen
//! clients. What it asks is answered at the [`Desk`], which may take its time (a detach waits for
//! the guest): other clients do not wait for that.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use super::{LONGEST_REQUEST, Response, socket};
use crate::{Error, HostError};

/// How long a client may take to send a line, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients there may be at a time.
const CLIENTS: usize = 16;
/// How long the listener rests when the host has no descriptors or threads left.
const REST: Duration = Duration::from_millis(100);

/// Who answers.
pub trait Desk: Send + Sync + 'static {
    /// What can be asked.
    type Request: DeserializeOwned;

    /// Answers one request; the error is shown to whoever asked.
    ///
    /// # Errors
    ///
    /// What was asked cannot be done.
    fn answer(&self, request: Self::Request) -> Result<serde_json::Value, String>;
}

/// A listening socket. Dropping it ends it and every conversation.
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    wake: UnixStream,
    listening: Option<JoinHandle<()>>,
}

/// A desk, from a line to what it is answered.
type Answer = dyn Fn(&[u8]) -> Response + Send + Sync;

struct Shared {
    answer: Box<Answer>,
    ending: AtomicBool,
    clients: Mutex<Vec<(RawFd, Arc<UnixStream>)>>,
    /// Told when a client is gone.
    left: Condvar,
}

impl Server {
    /// Listens at `path` and has what is asked there answered by `desk`.
    ///
    /// # Errors
    ///
    /// The path is taken, or the host refuses.
    pub fn start<D: Desk>(path: &Path, desk: D) -> Result<Self, Error> {
        let listener = socket::listen(path)?;
        let doing = || format!("serve {}", path.display());
        let host = |error: io::Error| HostError::from_io(doing(), &error);
        listener.set_nonblocking(true).map_err(host)?;
        let (wake, woken) = UnixStream::pair().map_err(host)?;
        let shared = Arc::new(Shared {
            answer: Box::new(move |line| answer(&desk, line)),
            ending: AtomicBool::new(false),
            clients: Mutex::new(Vec::new()),
            left: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let listening = thread::Builder::new()
            .name("control".into())
            .spawn(move || listen(&listener, &woken, &theirs))
            .map_err(host)?;
        Ok(Self { path: path.to_owned(), shared, wake, listening: Some(listening) })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        // A thread that is no more needs no waking; a client that is gone no shutting.
        let _ = self.wake.write_all(b"x");
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
        // While somebody may wait for our end, who is to listen here next.
        let _ = std::fs::remove_file(&self.path);
        // Only their reading side: one who asked for the end is to read that it came.
        let clients = self.shared.clients();
        for (_, client) in clients.iter() {
            let _ = client.shutdown(std::net::Shutdown::Read);
        }
        // And it is to be sent before the process ends, to whoever takes it.
        let waited =
            self.shared.left.wait_timeout_while(clients, PATIENCE, |clients| !clients.is_empty());
        drop(waited);
    }
}

impl Shared {
    fn clients(&self) -> std::sync::MutexGuard<'_, Vec<(RawFd, Arc<UnixStream>)>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, number: RawFd) {
        self.clients().retain(|(other, _)| *other != number);
        self.left.notify_all();
    }
}

fn listen(listener: &UnixListener, woken: &UnixStream, shared: &Arc<Shared>) {
    while !shared.ending.load(Ordering::Acquire) {
        let mut waited = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut waited, PollTimeout::NONE).is_err() {
            continue;
        }
        match listener.accept() {
            Ok((client, _)) => {
                if admit(client, shared).is_err() {
                    thread::sleep(REST);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => thread::sleep(REST),
        }
    }
}

fn admit(client: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    let client = Arc::new(client);
    let number = client.as_raw_fd();
    {
        let mut clients = shared.clients();
        if clients.len() >= CLIENTS {
            let busy = Response::Error(format!("there are {CLIENTS} clients already; try later"));
            return send(&client, &busy);
        }
        clients.push((number, Arc::clone(&client)));
    }
    let theirs = Arc::clone(shared);
    let started = thread::Builder::new().name("control-client".into()).spawn(move || {
        // Its end is a client's to choose.
        let _ = converse(&client, &theirs);
        theirs.forget(number);
    });
    if started.is_err() {
        shared.forget(number);
    }
    started.map(drop)
}

fn converse(client: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut held = Vec::new();
    while let Some(line) = line(client, &mut held)? {
        send(client, &(shared.answer)(&line))?;
    }
    Ok(())
}

fn answer<D: Desk>(desk: &D, line: &[u8]) -> Response {
    match serde_json::from_slice(line) {
        Ok(request) => match desk.answer(request) {
            Ok(result) => Response::Result(result),
            Err(error) => Response::Error(error),
        },
        Err(error) => Response::Error(format!("not a request: {error}")),
    }
}

/// The next line; `None` at the end, or where it is too long or too slow.
fn line(mut client: &UnixStream, held: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let begun = Instant::now();
    loop {
        if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = held.drain(..=end).collect();
            line.pop();
            return Ok(Some(line));
        }
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        if held.len() >= LONGEST_REQUEST {
            let long = format!("not a request: more than {LONGEST_REQUEST} bytes in a line");
            send(client, &Response::Error(long))?;
            return Ok(None);
        }
        client.set_read_timeout(Some(left))?;
        let mut some = [0; 1024];
        match client.read(&mut some) {
            Ok(0) => return Ok(None),
            Ok(read) => held.extend(some.iter().take(read)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(mut client: &UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    client.write_all(&line)
}
