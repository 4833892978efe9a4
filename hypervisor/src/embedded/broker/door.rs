//! Who comes in: processes of the same user, or of root, and no more than there is room for.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::HostError;
use crate::embedded::frame;

/// The most processes that can be connected.
const MOST: usize = 4096;

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Door {
    /// The standard library's type for the sake of its `accept`; the socket keeps messages apart,
    /// which that does not care about.
    listener: UnixListener,
    /// Given up for a moment when there are no descriptors left, to turn away whoever waits: a
    /// socket that stays readable would be looked at again and again.
    spare: Option<File>,
}

/// A process that came in.
pub(crate) struct Visitor {
    pub(crate) socket: OwnedFd,
    pub(crate) pid: i32,
}

impl Door {
    /// Listens at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, HostError> {
        Ok(Self { listener: UnixListener::from(frame::listen(path)?), spare: spare() })
    }

    /// The next who waits, if it may come in where `inside` others already are.
    pub(crate) fn accept(&mut self, inside: usize) -> Option<Visitor> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                    tracing::warn!("a process is turned away: no descriptors are left");
                    self.spare = None;
                    drop(self.listener.accept());
                    self.spare = spare();
                }
                return None;
            }
        };
        let who = getsockopt(&stream, PeerCredentials).ok()?;
        let own = nix::unistd::geteuid().as_raw();
        if who.uid() != 0 && who.uid() != own {
            tracing::warn!("process {} of user {} is turned away", who.pid(), who.uid());
            return None;
        }
        if inside >= MOST {
            tracing::warn!("process {} is turned away: {inside} are connected", who.pid());
            return None;
        }
        Some(Visitor { socket: OwnedFd::from(stream), pid: who.pid() })
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}
