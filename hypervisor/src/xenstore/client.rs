//! One connection to a store: `xenstored`'s, by its socket or by the kernel's device, or our
//! [`server`](super::server)'s.
//!
//! A request is sent, and its reply awaited, under a lock, so that a client can be shared. Events that
//! come in between are kept for [`Watches::changed`]. The client as a file descriptor is readable while any
//! are kept or anything has come in, so an event loop can wait for it whatever other threads ask
//! meanwhile.
//!
//! The store is trusted, but what breaks the protocol ends the connection: from then on every call
//! fails. Source: `docs/misc/xenstore.txt` (RELEASE-4.17).

mod exchange;
mod line;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::store::{
    Changed, Ended, Permission, Store, StoreError, Transaction, Transactions, Watches,
};
use crate::xenstore::wire::{self, Kind, Refusal};
use crate::{DomId, EventPort, HostError};

use exchange::{Wire, nonsense};
use line::Line;

/// A client of a store.
#[derive(Debug)]
pub struct Client {
    wire: Mutex<Wire>,
    /// Readable while the line or `kept` is.
    either: Epoll,
}

impl Client {
    /// Connects to the store that listens at `path`.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or descriptors cannot be had.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, HostError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).map_err(|error| {
            HostError::from_io(format!("connect to the store at {}", path.display()), &error)
        })?;
        Self::from_stream(stream)
    }

    /// A client on a socket that is connected to a store already.
    ///
    /// # Errors
    ///
    /// Descriptors cannot be had.
    pub fn from_stream(stream: UnixStream) -> Result<Self, HostError> {
        stream
            .set_nonblocking(false)
            .map_err(|error| HostError::from_io("wait for the store", &error))?;
        Self::on(Line::Socket(stream))
    }

    /// A client on the kernel's device (`/dev/xen/xenbus`), opened for reading and writing and
    /// never to wait (`O_NONBLOCK`).
    ///
    /// # Errors
    ///
    /// Descriptors cannot be had.
    pub fn from_device(device: File) -> Result<Self, HostError> {
        Self::on(Line::Device(device))
    }

    fn on(line: Line) -> Result<Self, HostError> {
        let failed = |errno: Errno| HostError::new("wait for the store", errno as i32);
        let kept =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?;
        let either = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        either.add(&line, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
        either.add(&kept, EpollEvent::new(EpollFlags::EPOLLIN, 1)).map_err(failed)?;
        Ok(Self { wire: Mutex::new(Wire::new(line, kept)), either })
    }

    /// Makes `path` and what is missing above it, with empty values. That it was there is no error.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn make(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        let parts = [path.as_bytes(), b"\0"];
        self.ask(Kind::Mkdir, within, "make", path, &parts).map(drop)
    }

    /// Where a domain's relative paths begin.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn domain_path(&self, domain: DomId) -> Result<String, StoreError> {
        let reply = self.about(Kind::GetDomainPath, "find home of domain", domain)?;
        text(reply.strip_suffix(b"\0").unwrap_or(&reply))
    }

    /// Tells the store of a new domain. `frame` and `port` are the page and the event channel of a
    /// guest that shares memory with the store.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn introduce(&self, domain: DomId, frame: u64, port: EventPort) -> Result<(), StoreError> {
        let payload = format!("{domain}\0{frame}\0{port}\0");
        let (none, name) = (Transaction::NONE, domain.to_string());
        self.ask(Kind::Introduce, none, "introduce domain", &name, &[payload.as_bytes()]).map(drop)
    }

    /// Tells the store that a domain has gone.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn release(&self, domain: DomId) -> Result<(), StoreError> {
        self.about(Kind::Release, "release domain", domain).map(drop)
    }

    /// Whether the store knows a domain.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn is_introduced(&self, domain: DomId) -> Result<bool, StoreError> {
        let reply = self.about(Kind::IsDomainIntroduced, "ask for domain", domain)?;
        Ok(reply.first() == Some(&b'T'))
    }

    /// Ends all watches and transactions of this connection. Events that wait are forgotten.
    ///
    /// # Errors
    ///
    /// See [`StoreError`]. On the kernel's device it is refused: the connection is the whole
    /// domain's, and the kernel's own watches would end with it.
    pub fn reset_watches(&self) -> Result<(), StoreError> {
        if matches!(self.wire().line, Line::Device(_)) {
            let (operation, errno) = ("reset watches of", Errno::EOPNOTSUPP as i32);
            return Err(StoreError::Refused { operation, path: "/".into(), errno });
        }
        self.ask(Kind::ResetWatches, Transaction::NONE, "reset watches of", "/", &[b"\0"])?;
        let mut wire = self.wire();
        wire.events.clear();
        wire.mark();
        Ok(())
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn about(
        &self,
        kind: Kind,
        operation: &'static str,
        domain: DomId,
    ) -> Result<Vec<u8>, StoreError> {
        let name = domain.to_string();
        self.ask(kind, Transaction::NONE, operation, &name, &[name.as_bytes(), b"\0"])
    }

    /// Sends a request about `path` and gives its reply.
    fn ask(
        &self,
        kind: Kind,
        within: Transaction,
        operation: &'static str,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        let refused = |refusal: Refusal| match refusal {
            Refusal::Missing => StoreError::Missing(path.into()),
            other => StoreError::Refused { operation, path: path.into(), errno: other.errno() },
        };
        if path.contains('\0') {
            // It would be read as two strings.
            return Err(refused(Refusal::Invalid));
        }
        self.wire().exchange(kind, within, parts)?.map_err(refused)
    }

    /// A list of children that does not fit into one reply.
    fn list_parts(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        let mut names = Vec::new();
        let mut generation = Vec::new();
        loop {
            let offset = names.len().to_string();
            let parts = [path.as_bytes(), b"\0", offset.as_bytes(), b"\0"];
            let asked = self.ask(Kind::DirectoryPart, within, "list", path, &parts);
            let reply = match asked {
                // The list became shorter than what we have of it.
                Err(StoreError::Refused { errno, .. })
                    if errno == Refusal::Invalid.errno() && !names.is_empty() =>
                {
                    names.clear();
                    continue;
                }
                other => other?,
            };
            let ([now], part) = wire::strings(&reply).ok_or_else(|| nonsense("a list"))?;
            if now != generation.as_slice() && !names.is_empty() {
                // It changed between two parts: what we have may not fit what follows.
                names.clear();
                generation.clear();
                continue;
            }
            generation = now.to_vec();
            // An empty name, which no child has, ends the list.
            match part {
                [0] => return Ok(names),
                [rest @ .., 0, 0] => {
                    names.extend_from_slice(rest);
                    names.push(0);
                    return Ok(names);
                }
                [_, .., 0] => names.extend_from_slice(part),
                _ => return Err(nonsense("a list").into()),
            }
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, StoreError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| nonsense("bytes that are no text").into())
}

impl Store for Client {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        self.ask(Kind::Read, within, "read", path, &[path.as_bytes(), b"\0"])
    }

    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
        let parts = [path.as_bytes(), b"\0", value];
        self.ask(Kind::Write, within, "write", path, &parts).map(drop)
    }

    fn list(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        let asked = self.ask(Kind::Directory, within, "list", path, &[path.as_bytes(), b"\0"]);
        let names = match asked {
            Err(StoreError::Refused { errno, .. }) if errno == Refusal::TooBig.errno() => {
                self.list_parts(within, path)?
            }
            other => other?,
        };
        names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(text).collect()
    }

    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        match self.ask(Kind::Rm, within, "remove", path, &[path.as_bytes(), b"\0"]) {
            Ok(_) | Err(StoreError::Missing(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn permissions(&self, within: Transaction, path: &str) -> Result<Vec<Permission>, StoreError> {
        let reply = self.ask(
            Kind::GetPerms,
            within,
            "read permissions of",
            path,
            &[path.as_bytes(), b"\0"],
        )?;
        let texts = reply.split(|byte| *byte == 0).filter(|text| !text.is_empty());
        texts
            .map(|text| {
                wire::parse_permission(text).ok_or_else(|| nonsense("an unknown permission").into())
            })
            .collect()
    }

    fn set_permissions(
        &self,
        within: Transaction,
        path: &str,
        permissions: &[Permission],
    ) -> Result<(), StoreError> {
        let mut payload = format!("{path}\0");
        for permission in permissions {
            payload.push_str(&wire::permission_string(permission));
            payload.push('\0');
        }
        let operation = "set permissions of";
        self.ask(Kind::SetPerms, within, operation, path, &[payload.as_bytes()]).map(drop)
    }
}

impl Transactions for Client {
    fn begin(&self) -> Result<Transaction, StoreError> {
        let none = Transaction::NONE;
        let reply =
            self.ask(Kind::TransactionStart, none, "begin a transaction in", "/", &[b"\0"])?;
        match wire::decimal(reply.strip_suffix(b"\0").unwrap_or(&reply)) {
            Some(number) if number != 0 => Ok(Transaction(number)),
            _ => Err(nonsense("a transaction without a number").into()),
        }
    }

    fn end(&self, transaction: Transaction, commit: bool) -> Result<Ended, StoreError> {
        let how: &[u8] = if commit { b"T\0" } else { b"F\0" };
        match self.ask(Kind::TransactionEnd, transaction, "end a transaction in", "/", &[how]) {
            Ok(_) => Ok(Ended::Committed),
            Err(StoreError::Refused { errno, .. }) if errno == Refusal::Again.errno() => {
                Ok(Ended::Conflict)
            }
            Err(other) => Err(other),
        }
    }
}

impl Watches for Client {
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.about_watch(Kind::Watch, "watch", path, token)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.about_watch(Kind::Unwatch, "unwatch", path, token)
    }

    fn changed(&self) -> Result<Option<Changed>, StoreError> {
        Ok(self.wire().changed()?)
    }
}

impl Client {
    fn about_watch(
        &self,
        kind: Kind,
        operation: &'static str,
        path: &str,
        token: &str,
    ) -> Result<(), StoreError> {
        if token.contains('\0') {
            let errno = Refusal::Invalid.errno();
            return Err(StoreError::Refused { operation, path: path.into(), errno });
        }
        let parts = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
        self.ask(kind, Transaction::NONE, operation, path, &parts).map(drop)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.0.as_fd()
    }
}
