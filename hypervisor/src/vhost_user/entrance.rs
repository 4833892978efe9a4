//! Where monitors are to come in, as it stands on a command line.
//!
//! Whoever starts a daemon may have made its socket already: systemd, which then starts the daemon when somebody first
//! connects, or a program that starts both ends. Source: sd_listen_fds(3); `--fd` of virtiofsd.
#![expect(unsafe_code, reason = "descriptors that were inherited are known by their numbers only")]

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};

use super::Door;
use crate::{ConfigError, Error};

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// The most that are looked at.
const MOST: RawFd = 256;

/// Where monitors come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// At a path: `PATH`. A socket that systemd passed and that lies there is used.
    Path(PathBuf),
    /// By the socket that was inherited as this descriptor: `fd=N`.
    Descriptor(RawFd),
    /// By a socket that systemd passed: `systemd` for the only one, `systemd:NAME` for the one of that
    /// `FileDescriptorName=`.
    Passed(Option<String>),
}

impl FromStr for Entrance {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if word == "systemd" {
            return Ok(Self::Passed(None));
        }
        if let Some(name) = word.strip_prefix("systemd:") {
            return match name {
                "" => Err("needs a name behind systemd: (FileDescriptorName= of the unit)".into()),
                name => Ok(Self::Passed(Some(name.to_owned()))),
            };
        }
        if let Some(number) = word.strip_prefix("fd=") {
            return match number.parse() {
                Ok(number @ FIRST..) => Ok(Self::Descriptor(number)),
                _ => Err(format!(
                    "{number:?} is no descriptor of a socket; they begin at {FIRST} (for a file of that name: ./fd=...)"
                )),
            };
        }
        match word {
            "" => Err("needs a path, fd=N or systemd".into()),
            path => Ok(Self::Path(path.into())),
        }
    }
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Descriptor(number) => write!(f, "fd={number}"),
            Self::Passed(None) => f.write_str("systemd"),
            Self::Passed(Some(name)) => write!(f, "systemd:{name}"),
        }
    }
}

impl Entrance {
    /// Opens it: listens there, or connects where `connect` says that the monitor listens.
    ///
    /// # Errors
    ///
    /// There is no such socket, or the host refuses.
    pub fn open(&self, connect: bool) -> Result<Door, Error> {
        let refuse = |problem: String| Err(ConfigError::new("--vhost-user", self, problem).into());
        match self {
            Self::Path(path) if connect => Ok(Door::connect(path)),
            _ if connect => {
                refuse("--reconnect needs the path that the monitor listens at".to_owned())
            }
            Self::Path(path) => match passed().into_iter().find(|(fd, _)| lies_at(*fd, path)) {
                Some((fd, _)) => Door::over(self.listener(fd)?, None),
                None => Door::listen(path),
            },
            Self::Descriptor(number) => Door::over(self.listener(*number)?, None),
            Self::Passed(name) => {
                let all = passed();
                let wanted = |known: &str| name.as_deref().is_none_or(|name| name == known);
                let found: Vec<_> = all.iter().filter(|(_, known)| wanted(known)).collect();
                match found.as_slice() {
                    [(fd, _)] => Door::over(self.listener(*fd)?, None),
                    [] if all.is_empty() => refuse(
                        "no socket was passed to this process (LISTEN_FDS and LISTEN_PID are not set \
                         for it); start it by a socket unit, or name a path"
                            .to_owned(),
                    ),
                    found => {
                        let names: Vec<_> = all.iter().map(|(_, name)| name.as_str()).collect();
                        let (count, names) = (found.len(), names.join(", "));
                        refuse(format!("{count} sockets are meant; passed were: {names}"))
                    }
                }
            }
        }
    }

    /// The socket that was inherited as `fd`, as one of our own.
    fn listener(&self, fd: RawFd) -> Result<UnixListener, Error> {
        let refuse = |problem: &'static str| {
            let what = format!("{self} (descriptor {fd})");
            Error::from(ConfigError::new("--vhost-user", what, problem))
        };
        let own = duplicate(fd).ok_or_else(|| refuse("is not open in this process"))?;
        let (listens, kind) = (sockopt::AcceptConn, sockopt::SockType);
        match (getsockopt(&own, listens), getsockopt(&own, kind), name_of(&own)) {
            (Ok(true), Ok(SockType::Stream), Some(_)) => Ok(UnixListener::from(own)),
            (Ok(false), Ok(_), Some(_)) => Err(refuse("is a socket that nobody listens with")),
            (Ok(_), ..) => Err(refuse("is no stream socket of the Unix family")),
            _ => Err(refuse("is no socket")),
        }
    }
}

/// A descriptor of our own for what `fd` stands for; that one stays as it is.
fn duplicate(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: whoever started this process gave it the number. Nothing here closes it, so it stands for the same as
    // long as it is borrowed; where it stands for nothing, the call says so.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let own = borrowed.try_clone_to_owned().ok()?;
    // Programs that this one starts are not to have it.
    let _ = fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    Some(own)
}

fn name_of(fd: &OwnedFd) -> Option<UnixAddr> {
    use std::os::fd::AsRawFd as _;
    getsockname::<UnixAddr>(fd.as_raw_fd()).ok()
}

fn lies_at(fd: RawFd, path: &Path) -> bool {
    let name = duplicate(fd).as_ref().and_then(name_of);
    name.is_some_and(|name| name.path() == Some(path))
}

/// What systemd passed to this very process: descriptors, and their names.
fn passed() -> Vec<(RawFd, String)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<RawFd>().ok();
    if number("LISTEN_PID").and_then(|pid| u32::try_from(pid).ok()) != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MOST);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    // As sd_listen_fds_with_names(3) calls what has no name.
    let name = |_| names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
    let all: Vec<String> = (0..count).map(name).collect();
    (FIRST..).zip(all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_where() {
        for (word, entrance) in [
            ("/run/a.sock", Entrance::Path("/run/a.sock".into())),
            ("./systemd", Entrance::Path("./systemd".into())),
            ("fd=7", Entrance::Descriptor(7)),
            ("systemd", Entrance::Passed(None)),
            ("systemd:disk", Entrance::Passed(Some("disk".into()))),
        ] {
            assert_eq!(word.parse(), Ok(entrance.clone()));
            assert_eq!(entrance.to_string(), word);
        }
        for word in ["", "fd=", "fd=2", "fd=-3", "fd=x", "systemd:"] {
            assert!(word.parse::<Entrance>().is_err(), "{word}");
        }
    }

    #[test]
    fn what_is_no_listening_socket_is_refused_in_words() {
        use std::os::fd::AsRawFd as _;
        let file = tempfile::tempfile().unwrap();
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (fd, words) in [
            (file.as_raw_fd(), "is no socket"),
            (stream.as_raw_fd(), "nobody listens"),
            (inet.as_raw_fd(), "Unix family"),
            (9999, "is not open"),
        ] {
            let error = Entrance::Descriptor(fd).open(false).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(&fd.to_string()), "{error}");
        }
        let error = Entrance::Passed(None).open(false).unwrap_err().to_string();
        assert!(error.contains("LISTEN_FDS"), "{error}");
        let error = Entrance::Passed(None).open(true).unwrap_err().to_string();
        assert!(error.contains("--reconnect"), "{error}");
    }

    #[test]
    fn a_socket_that_was_inherited_is_listened_with() {
        use std::os::fd::AsRawFd as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut door = Entrance::Descriptor(listener.as_raw_fd()).open(false).unwrap();
        assert!(door.come().unwrap().is_none());
        let _stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(door.come().unwrap().is_some());
        drop(door);
        assert!(path.exists(), "it is not ours to remove");
    }
}
