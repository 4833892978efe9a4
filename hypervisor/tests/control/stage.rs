//! A hypervisor in a folder of its own, and what is done with it from outside.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hypervisor::embedded::Place;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The tool, in that folder and without anything in the environment that would lead it elsewhere.
pub(crate) fn tool(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypervisor"));
    command.env("DOMKIT_RUN", folder).env("DOMKIT_HYPERVISOR", "embedded");
    command.env_remove("DOMKIT_DOMAIN").env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
    command.stdin(Stdio::null());
    command
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that does not outlive the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// One line of what it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A hypervisor with 1 GiB, unless told otherwise.
pub(crate) struct Stage {
    pub(crate) hypervisor: Running,
    pub(crate) ready: String,
    place: Place,
    _folder: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(&["--memory", "1G"])
    }

    pub(crate) fn with(options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("domkit-").unwrap();
        let mut command = tool(&folder.path().join("run"));
        command.arg("run").args(options).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut hypervisor = Running::start(&mut command);
        let ready = hypervisor.line();
        let place = Place::at(folder.path().join("run"));
        Self { hypervisor, ready, place, _folder: folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.place.folder()
    }

    pub(crate) fn place(&self) -> Place {
        self.place.clone()
    }

    /// What the tool says to this.
    pub(crate) fn ask(&self, args: &[&str]) -> Output {
        tool(self.folder()).args(args).output().unwrap()
    }

    /// What it prints, where it must do what it is told.
    pub(crate) fn done(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every domain, as JSON.
    pub(crate) fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.done(&["list", "--json"])).unwrap()
    }

    /// One field of one domain.
    pub(crate) fn field(&self, name: &str, field: &str) -> Option<Value> {
        self.list().into_iter().find(|one| one["name"] == name).map(|one| one[field].clone())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Gently, so that it takes its domains and its groups with it.
        let _ = kill(Pid::from_raw(self.hypervisor.pid()), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && !matches!(self.hypervisor.0.try_wait(), Ok(Some(_))) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
