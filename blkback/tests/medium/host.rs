//! What the tests of images borrow from the machine, given back when dropped.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Says that something is not tested here, and why, past the test harness, which would keep what a
/// test that passes has said to itself. Where nothing may be skipped (`DOMKIT_NO_SKIP=1`), it fails.
pub(crate) fn skipped(why: &str) {
    let allowed = std::env::var_os("DOMKIT_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "must not be skipped here (DOMKIT_NO_SKIP=1): {why}");
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let done = Command::new(program).args(arguments).output();
    match done {
        Ok(done) if done.status.success() => {
            Some(String::from_utf8_lossy(&done.stdout).trim().to_owned())
        }
        Ok(done) => {
            let why = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            skipped(&format!("needs root and {program} {}: {why}", arguments.join(" ")));
            None
        }
        Err(error) => {
            skipped(&format!("needs {program}: {error}"));
            None
        }
    }
}

/// A block device made of a file.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    /// None, with a loud word, where there are no such devices for us.
    pub(crate) fn new(file: &Path, sector_size: u32) -> Option<Self> {
        let (size, file) = (sector_size.to_string(), file.to_str().unwrap());
        run("losetup", &["--find", "--show", "--sector-size", &size, file])
            .map(|device| Self(device.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.0.to_str().unwrap()]);
    }
}

/// A file system in memory of a few pages.
pub(crate) struct Small(pub(crate) tempfile::TempDir);

impl Small {
    /// None, with a loud word, where we may not mount.
    pub(crate) fn new(kib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k");
        let path = folder.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", path])?;
        Some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &[self.0.path().to_str().unwrap()]);
    }
}

/// Another process that has a lock on a file.
pub(crate) struct Holder(pub(crate) Child);

impl Holder {
    /// Has util-linux's `flock`, run under the name `name`, take the lock; returns once it has it.
    pub(crate) fn new(file: &Path, name: &str, shared: bool) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(name);
        let flock = run("which", &["flock"])?;
        std::os::unix::fs::symlink(flock, &program).unwrap();
        let mut child = Command::new(program)
            .args([if shared { "--shared" } else { "--exclusive" }, "--close"])
            .args([file.to_str().unwrap(), "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // What it runs under the lock answers, and ends with its input.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Some(Self(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
