//! How a monitor and this process come together: it connects to us, or we to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Socket;
use crate::{ConfigError, Error, HostError};

/// Between two tries to connect.
const BETWEEN: Duration = Duration::from_millis(200);

/// Where monitors come in.
#[derive(Debug)]
pub enum Door {
    /// They connect to a socket of ours.
    Ours {
        /// It.
        listener: UnixListener,
        /// Where it lies, if it is ours to remove.
        path: Option<PathBuf>,
    },
    /// We connect to a socket of theirs, again and again.
    Theirs {
        /// Where it lies.
        path: PathBuf,
        /// Not to be tried before.
        next: Instant,
    },
    /// Nobody is let in.
    Closed {
        /// Where the socket lies, or would.
        path: PathBuf,
        /// Whether it is ours.
        ours: bool,
    },
}

impl Door {
    /// Listens at `path`. A socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    ///
    /// Somebody else listens there, something else lies there, or the host refuses.
    pub fn listen(path: &Path) -> Result<Self, Error> {
        let refuse = |problem: &'static str| {
            Err(ConfigError::new("--vhost-user", path.display(), problem).into())
        };
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return refuse("is there already and is no socket; name another path");
            }
            if UnixStream::connect(path).is_ok() {
                return refuse("somebody else listens there");
            }
            let _ = std::fs::remove_file(path);
        }
        match UnixListener::bind(path) {
            Ok(listener) => Self::over(listener, Some(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                refuse("is longer than a socket's path can be (107 bytes)")
            }
            Err(error) => {
                Err(HostError::from_io(format!("listen at {}", path.display()), &error).into())
            }
        }
    }

    /// Listens with a socket that somebody else has made.
    ///
    /// # Errors
    ///
    /// It cannot be listened with.
    pub fn over(listener: UnixListener, path: Option<PathBuf>) -> Result<Self, Error> {
        let nonblocking = listener.set_nonblocking(true);
        nonblocking.map_err(|error| HostError::from_io("listen for monitors", &error))?;
        Ok(Self::Ours { listener, path })
    }

    /// Connects to `path`, whenever somebody listens there.
    #[must_use]
    pub fn connect(path: &Path) -> Self {
        Self::Theirs { path: path.to_owned(), next: Instant::now() }
    }

    /// Lets nobody in until it is [opened](Self::open) again.
    pub fn close(&mut self) {
        let closed = match self {
            // A socket that somebody else made stays theirs: whoever comes meanwhile waits.
            Self::Ours { path: Some(path), .. } => Self::Closed { path: path.clone(), ours: true },
            Self::Theirs { path, .. } => Self::Closed { path: path.clone(), ours: false },
            Self::Ours { path: None, .. } | Self::Closed { .. } => return,
        };
        *self = closed;
    }

    /// Lets monitors in again, after it was closed.
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    pub fn open(&mut self) -> Result<(), Error> {
        let Self::Closed { path, ours } = &*self else { return Ok(()) };
        *self = if *ours { Self::listen(path)? } else { Self::connect(path) };
        Ok(())
    }

    /// What polls readable when somebody may have come, where that is how it is known.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Ours { listener, .. } => Some(listener.as_fd()),
            Self::Theirs { .. } | Self::Closed { .. } => None,
        }
    }

    /// When to look again, where nothing polls readable.
    #[must_use]
    pub const fn next(&self) -> Option<Instant> {
        match self {
            Self::Ours { .. } | Self::Closed { .. } => None,
            Self::Theirs { next, .. } => Some(*next),
        }
    }

    /// Whoever has come.
    ///
    /// # Errors
    ///
    /// The host cannot.
    pub fn come(&mut self) -> Result<Option<Socket>, HostError> {
        let stream = match self {
            Self::Closed { .. } => return Ok(None),
            Self::Ours { listener, .. } => match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if passing(&error) => return Ok(None),
                Err(error) => return Err(HostError::from_io("let a monitor in", &error)),
            },
            Self::Theirs { path, next } => {
                if Instant::now() < *next {
                    return Ok(None);
                }
                *next = Instant::now().checked_add(BETWEEN).unwrap_or(*next);
                match UnixStream::connect(path.as_path()) {
                    Ok(stream) => stream,
                    // Nobody is there yet, or any more.
                    Err(_) => return Ok(None),
                }
            }
        };
        Socket::new(stream).map(Some)
    }
}

fn passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Self::Ours { path: Some(path), .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}
