//! The connection to a monitor: bytes, and descriptors beside them.
#![expect(unsafe_code, reason = "descriptors received from the kernel become owned")]

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags};

use super::message::{HEADER, Header, MOST_DESCRIPTORS, compose, fault};
use crate::{Error, HostError};

/// How long the other end may take over one message: to send the rest of it, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub struct Socket(UnixStream);

/// A message that came.
pub(super) struct Received {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) beside: Vec<OwnedFd>,
}

impl Socket {
    /// Speaks over `stream`.
    ///
    /// # Errors
    ///
    /// It is no socket that could be spoken over.
    pub fn new(stream: UnixStream) -> Result<Self, HostError> {
        let failed = |error: io::Error| HostError::from_io("set up a vhost-user socket", &error);
        stream.set_nonblocking(false).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Self(stream))
    }

    /// The next message; `None` at the end of the connection. To be called once the socket is readable.
    pub(super) fn receive(&mut self) -> Result<Option<Received>, Error> {
        let mut bytes = [0; HEADER];
        let (have, beside) = self.first(&mut bytes)?;
        if have == 0 {
            return Ok(None);
        }
        if let Some(rest) = bytes.get_mut(have..)
            && !self.fill(rest)?
        {
            return Ok(None);
        }
        let header = Header::parse(bytes)?;
        let mut payload = vec![0; header.len as usize];
        if !self.fill(&mut payload)? {
            return Ok(None);
        }
        Ok(Some(Received { header, payload, beside }))
    }

    fn first(&self, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Error> {
        let mut control = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        loop {
            let mut parts = [IoSliceMut::new(bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match socket::recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => {
                    let mut beside = Vec::new();
                    for part in message.cmsgs().map_err(broken)? {
                        if let ControlMessageOwned::ScmRights(raw) = part {
                            // SAFETY: the kernel has just made these descriptors for this process, and
                            // nothing else has been told of them.
                            let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
                            beside.extend(raw.into_iter().map(own));
                        }
                    }
                    return Ok((message.bytes, beside));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET | Errno::EPIPE) => return Ok((0, Vec::new())),
                Err(errno) => return Err(broken(errno).into()),
            }
        }
    }

    /// Reads all of `into`; `false` where the connection ends first.
    fn fill(&mut self, into: &mut [u8]) -> Result<bool, Error> {
        match self.0.read_exact(into) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(fault("message_unfinished", format!("{PATIENCE:?} long")).into())
            }
            Err(error) => Err(HostError::from_io("read a vhost-user message", &error).into()),
        }
    }

    /// Answers `request`.
    pub(super) fn answer(
        &self,
        request: u32,
        payload: &[u8],
        beside: Option<BorrowedFd<'_>>,
    ) -> Result<(), HostError> {
        self.send(&compose(request, false, payload), beside)
    }

    /// Asks for something; who does so with a socket of the backend's own wants no answer.
    pub(super) fn ask(&self, request: u32, payload: &[u8]) -> Result<(), HostError> {
        self.send(&compose(request, true, payload), None)
    }

    fn send(&self, bytes: &[u8], beside: Option<BorrowedFd<'_>>) -> Result<(), HostError> {
        let raw: Vec<RawFd> = beside.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        loop {
            let parts = [IoSlice::new(bytes)];
            match socket::sendmsg::<()>(
                self.0.as_raw_fd(),
                &parts,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                // Messages are far smaller than a socket's room: one is taken whole or not at all.
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(broken(Errno::EMSGSIZE)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(broken(errno)),
            }
        }
    }
}

fn broken(errno: Errno) -> HostError {
    HostError::new("speak with the machine's monitor", errno as i32)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
