//! The device nodes, and what to do where one is missing.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::HostError;

/// A device node and the kernel module that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Its path.
    pub path: &'static str,
    /// The module.
    pub module: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
}

/// Maps and copies what others granted.
pub const GNTDEV: Node = Node {
    path: "/dev/xen/gntdev",
    module: "xen-gntdev",
    purpose: "backends map and copy what guests granted",
};
/// Makes pages that are granted to others.
pub const GNTALLOC: Node = Node {
    path: "/dev/xen/gntalloc",
    module: "xen-gntalloc",
    purpose: "frontends grant pages to backends",
};
/// Event channels.
pub const EVTCHN: Node =
    Node { path: "/dev/xen/evtchn", module: "xen-evtchn", purpose: "both ends notify each other" };
/// The store, by way of the kernel's own connection to it.
pub const XENBUS: Node = Node {
    path: "/dev/xen/xenbus",
    module: "xenfs",
    purpose: "programs reach the store where xenstored does not run in this domain",
};

impl Node {
    /// All nodes that domkit uses.
    pub const ALL: [Self; 4] = [GNTDEV, GNTALLOC, EVTCHN, XENBUS];

    /// Opens it, never to wait in it.
    ///
    /// # Errors
    ///
    /// It is not there, or not for this user: the error says what to do.
    pub(super) fn open(self) -> Result<OwnedFd, HostError> {
        open(Path::new(self.path)).map_err(|error| {
            let advice = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => {
                    format!(" (is its module loaded? `modprobe {}`)", self.module)
                }
                Some(Errno::EACCES | Errno::EPERM) => {
                    " (run as root, or give this user access to the node)".to_owned()
                }
                _ => String::new(),
            };
            HostError::from_io(format!("open {}{advice}", self.path), &error)
        })
    }
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits());
    Ok(options.open(path)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_node_names_itself_and_its_module() {
        let node = Node { path: "/nonexistent/gntdev", ..GNTDEV };
        let error = node.open().unwrap_err().to_string();
        assert!(error.contains("open /nonexistent/gntdev"), "{error}");
        assert!(error.contains("`modprobe xen-gntdev`"), "{error}");
    }
}
