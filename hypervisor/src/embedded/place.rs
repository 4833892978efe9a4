//! The folder in which a running embedded hypervisor is found.
//!
//! ```text
//! DIR/control.sock     where domains and tools connect (message-keeping Unix socket)
//! DIR/xenstored.sock   the store, for stock xenstore clients (as the control domain)
//! DIR/lock             held by the one hypervisor that runs here
//! ```
//!
//! The folder belongs to one user and is closed to all others, which is what keeps them out of the
//! sockets in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::{ConfigError, Error, HostError};

/// The variable that names the folder.
const VARIABLE: &str = "DOMKIT_RUN";

/// A folder for one embedded hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    folder: PathBuf,
}

impl Place {
    /// The folder named by `DOMKIT_RUN`; else `/run/domkit` for root, `$XDG_RUNTIME_DIR/domkit`, or
    /// `/tmp/domkit-UID`.
    #[must_use]
    pub fn standard() -> Self {
        let user = nix::unistd::geteuid();
        let folder = match (std::env::var_os(VARIABLE), std::env::var_os("XDG_RUNTIME_DIR")) {
            (Some(named), _) if !named.is_empty() => PathBuf::from(named),
            _ if user.is_root() => PathBuf::from("/run/domkit"),
            (_, Some(runtime)) if !runtime.is_empty() => Path::new(&runtime).join("domkit"),
            _ => PathBuf::from(format!("/tmp/domkit-{user}")),
        };
        Self { folder }
    }

    /// That folder.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where domains and tools connect.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Where stock xenstore clients connect.
    #[must_use]
    pub fn store_socket(&self) -> PathBuf {
        self.folder.join("xenstored.sock")
    }

    /// Makes the folder where it is not there, for this user only.
    ///
    /// # Errors
    ///
    /// It cannot be made, or it is another user's or open to others.
    pub fn prepare(&self) -> Result<(), Error> {
        let shown = self.folder.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|error| HostError::from_io(format!("make folder {shown}"), &error))?;
        let about = fs::symlink_metadata(&self.folder)
            .map_err(|error| HostError::from_io(format!("look at folder {shown}"), &error))?;
        let user = nix::unistd::geteuid().as_raw();
        let problem = if !about.is_dir() {
            "is not a folder; name another with DOMKIT_RUN"
        } else if about.uid() != user {
            "belongs to another user; name another with DOMKIT_RUN"
        } else if about.mode() & 0o077 != 0 {
            "is open to other users; close it (chmod 700) or name another with DOMKIT_RUN"
        } else {
            return Ok(());
        };
        Err(ConfigError::new("runtime folder", shown, problem).into())
    }

    /// Takes the folder's lock, which the one hypervisor that runs there holds; `None` where
    /// somebody else has it.
    ///
    /// # Errors
    ///
    /// As for [`prepare`](Self::prepare), or the file cannot be opened.
    pub fn lock(&self) -> Result<Option<Lock>, Error> {
        self.lock_named("lock")
    }

    /// Takes the lock `name` in the folder; `None` where somebody else has it.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock).
    pub fn lock_named(&self, name: &str) -> Result<Option<Lock>, Error> {
        self.prepare()?;
        let path = self.folder.join(name);
        let doing = || format!("lock {}", path.display());
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| HostError::from_io(doing(), &error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Lock { _file: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(HostError::new(doing(), errno as i32).into()),
        }
    }
}

/// A held lock; dropping it, or the end of the process, gives it up.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lock_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path().join("inner"));
        let held = place.lock().unwrap().unwrap();
        assert!(place.lock().unwrap().is_none());
        drop(held);
        assert!(place.lock().unwrap().is_some());
    }

    #[test]
    fn a_folder_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = Place::at(folder.path()).prepare().unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }
}
