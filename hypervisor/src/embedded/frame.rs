//! One message, one packet: what goes over the control socket.
//!
//! The socket keeps message boundaries (`SOCK_SEQPACKET`), so a message arrives whole or not at all
//! and there is nothing to reassemble. Messages are JSON; file descriptors travel beside them, from
//! the broker only. Whoever sends more than [`LIMIT`] bytes is not understood.
#![expect(unsafe_code, reason = "descriptors received from the kernel become owned")]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType, UnixAddr,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::HostError;

/// The most bytes in a message.
pub(crate) const LIMIT: usize = 64 * 1024;
/// The most descriptors beside a message.
const DESCRIPTORS: usize = 4;

/// A socket that listens at `path`.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd, HostError> {
    let failed =
        |errno: Errno| HostError::new(format!("listen at {}", path.display()), errno as i32);
    let socket = make_socket(SockFlag::SOCK_NONBLOCK).map_err(failed)?;
    let address = UnixAddr::new(path).map_err(failed)?;
    socket::bind(socket.as_raw_fd(), &address).map_err(failed)?;
    let backlog = Backlog::new(128).map_err(failed)?;
    socket::listen(&socket, backlog).map_err(failed)?;
    Ok(socket)
}

/// A socket connected to the one that listens at `path`.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd, HostError> {
    let failed = |errno: Errno| {
        HostError::new(format!("connect to the hypervisor at {}", path.display()), errno as i32)
    };
    let socket = make_socket(SockFlag::empty()).map_err(failed)?;
    let address = UnixAddr::new(path).map_err(failed)?;
    loop {
        match socket::connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn make_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

/// Sends one message and what goes beside it, waiting for room in the socket (`true`) or not.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    beside: &[BorrowedFd<'_>],
    wait: bool,
) -> nix::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
    if bytes.len() > LIMIT {
        return Err(Errno::EMSGSIZE);
    }
    let raw: Vec<RawFd> = beside.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let socket = socket.as_fd().as_raw_fd();
    let waiting = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
    loop {
        let parts = [IoSlice::new(&bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL | waiting;
        match socket::sendmsg::<()>(socket, &parts, control, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives one message without anything beside it: what the other side sent along is discarded by
/// the kernel. `None` is the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> nix::Result<Option<T>> {
    buffer.resize(LIMIT, 0);
    let socket = socket.as_fd().as_raw_fd();
    let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let length = socket::recv(socket, buffer, flags)?;
    if length == 0 {
        return Ok(None);
    }
    parse(buffer.get(..length).ok_or(Errno::EMSGSIZE)?).map(Some)
}

/// Waits for one message and takes what came beside it. `None` is the end of the connection.
pub(crate) fn receive_beside<T: DeserializeOwned>(
    socket: impl AsFd,
) -> nix::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; LIMIT];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS]);
    let socket = socket.as_fd().as_raw_fd();
    let (length, beside) = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match socket::recvmsg::<()>(socket, &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                let mut beside = Vec::new();
                for part in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = part {
                        // SAFETY: the kernel has just made these descriptors for this process, and
                        // nothing else has been told of them.
                        beside
                            .extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (message.bytes, beside);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let message = parse(buffer.get(..length).ok_or(Errno::EMSGSIZE)?)?;
    Ok(Some((message, beside)))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> nix::Result<T> {
    serde_json::from_slice(bytes).map_err(|_| Errno::EBADMSG)
}
