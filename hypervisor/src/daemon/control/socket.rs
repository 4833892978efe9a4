//! Where daemons' sockets are, and which of them answer.
//!
//! They lie in the runtime folder as `PROGRAM-NAME.sock`, named after what is served. A socket that nobody
//! answers on was left by a daemon that was killed: the next one of that name takes its place.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, process};

use crate::{ConfigError, Error, HostError};

const SUFFIX: &str = ".sock";
/// A name's part in the path of a socket, of which the kernel takes 107 bytes in all.
const LONGEST_NAME: usize = 40;

/// The path for the socket of a daemon, a `program`, in `folder`: named after what is `served`, and
/// after this process as well where another daemon has that name.
#[must_use]
pub fn path_for(program: &str, folder: &Path, served: &str) -> PathBuf {
    let name: String = served
        .chars()
        .take(LONGEST_NAME)
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .collect();
    let path = path_named(program, folder, &name);
    if UnixStream::connect(&path).is_ok() {
        return path_named(program, folder, &format!("{name}-{}", process::id()));
    }
    path
}

/// The path for the socket of the daemon, a `program`, that is called `name`.
#[must_use]
pub fn path_named(program: &str, folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{program}-{name}{SUFFIX}"))
}

/// All sockets of daemons, of `program`s, in `folder`, by name, whether or not anybody answers.
///
/// # Errors
///
/// The folder cannot be read. That it is not there is no error: then there are none.
pub fn find(program: &str, folder: &Path) -> Result<Vec<PathBuf>, HostError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(HostError::from_io(format!("read folder {}", folder.display()), &error));
        }
    };
    let prefix = format!("{program}-");
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(SUFFIX)
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Listens at `path`, which only this user can connect to. One that nobody answers on is replaced.
///
/// # Errors
///
/// Somebody else answers there, or something that is no socket lies there, or the host refuses.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    let refuse = |why: &'static str| Err(ConfigError::new("--control", path.display(), why).into());
    match UnixStream::connect(path) {
        Ok(_) => return refuse("another process answers there; name another path"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // Only a socket refuses like this; a file does so too, and must not be lost.
            use std::os::unix::fs::FileTypeExt as _;
            match fs::symlink_metadata(path) {
                Ok(about) if !about.file_type().is_socket() => {
                    return refuse("something that is no socket lies there; name another path");
                }
                // Whether it could be removed shows when it is bound.
                _ => drop(fs::remove_file(path)),
            }
        }
        // Whatever else it is shows when it is bound.
        Err(_) => {}
    }
    let doing = || format!("listen at {}", path.display());
    let listener = UnixListener::bind(path).map_err(|error| HostError::from_io(doing(), &error))?;
    // The folder is closed to others as a rule; a path of the user's choice may not be.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| HostError::from_io(doing(), &error))?;
    Ok(listener)
}
