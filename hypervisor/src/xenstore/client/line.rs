//! What requests are written to and replies are read from: a socket, or the kernel's device.
//!
//! The device (`/dev/xen/xenbus`) takes one whole message in one write and hands out replies and
//! events as bytes, like the socket. It is opened never to wait, and waited for by polling; a socket
//! that others may share stays as it is, and is told each time.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

/// The most bytes in a message to the device, its header included.
const DEVICE_MESSAGE: usize = 4096;

/// A way to the store.
#[derive(Debug)]
pub(super) enum Line {
    Socket(UnixStream),
    Device(File),
}

/// What became of a message that was to be sent.
pub(super) enum Sent {
    /// It is under way, and will be answered.
    Done,
    /// The other side would not take it, with this reason, and there will be no answer.
    Refused(Errno),
}

impl Line {
    /// Sends a whole message.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<Sent> {
        match self {
            Self::Socket(stream) => stream.write_all(message).map(|()| Sent::Done),
            Self::Device(_) if message.len() > DEVICE_MESSAGE => Ok(Sent::Refused(Errno::E2BIG)),
            Self::Device(device) => loop {
                match device.write(message) {
                    Ok(len) if len == message.len() => return Ok(Sent::Done),
                    Ok(_) => return Err(ErrorKind::WriteZero.into()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // It says so of the message, not of itself: the next one may do.
                    Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                        Some(errno @ (Errno::EFAULT | Errno::EIO)) => return Err(errno.into()),
                        Some(errno) => return Ok(Sent::Refused(errno)),
                        None => return Err(error),
                    },
                }
            },
        }
    }

    /// Reads what has come in; waits for something if told to.
    pub(super) fn read(&mut self, room: &mut [u8], wait: bool) -> io::Result<usize> {
        match self {
            Self::Socket(stream) if wait => stream.read(room),
            Self::Socket(stream) => Ok(recv(stream.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT)?),
            Self::Device(device) => loop {
                match device.read(room) {
                    Err(error) if wait && error.kind() == ErrorKind::WouldBlock => {
                        let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
                        match poll(&mut fds, PollTimeout::NONE) {
                            Ok(_) | Err(Errno::EINTR) => {}
                            Err(errno) => return Err(errno.into()),
                        }
                    }
                    other => return other,
                }
            },
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(stream) => stream.as_fd(),
            Self::Device(device) => device.as_fd(),
        }
    }
}
