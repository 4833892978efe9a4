//! This program once more, for each device that a toolstack made.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io};

use nix::time::{ClockId, clock_gettime};

use crate::backend::Spot;
use crate::backend::watch::Starter;
use crate::find::DOMAIN_VARIABLE;
use crate::{DomId, HostError};

use super::control::socket;

/// Says to a process that serves a device since when nobody does, in nanoseconds of the machine's clock that
/// never goes back.
const SINCE: &str = "DOMKIT_UNSERVED_SINCE";

/// Since when nobody serves the device for which this process was started: the end of the process before
/// it, where whoever started this one saw that; else now.
#[must_use]
pub fn unserved_since() -> Instant {
    let now = Instant::now();
    let said = env::var(SINCE).ok().and_then(|said| said.parse().ok());
    let passed = said.and_then(|then: u64| clock()?.checked_sub(Duration::from_nanos(then)));
    passed.and_then(|passed| now.checked_sub(passed)).unwrap_or(now)
}

fn clock() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Duration::from)
}

/// This program, to be started for a device with `--device` and where that is.
#[derive(Clone, Debug)]
pub struct Program {
    name: &'static str,
    path: PathBuf,
    arguments: Vec<OsString>,
    folder: PathBuf,
    /// The domain to be, where it is not that of the machine.
    domain: Option<DomId>,
    /// Whether to take devices over that a process serves.
    takeover: bool,
}

impl Program {
    /// This program, called `name`, with further `arguments`. Its control sockets lie in `folder`.
    /// `domain` is for it to enter; without one, it is in the domain that it runs in, as on Xen.
    ///
    /// # Errors
    ///
    /// The host does not say where our own program is.
    pub fn own(
        name: &'static str,
        arguments: Vec<OsString>,
        folder: PathBuf,
        domain: Option<DomId>,
    ) -> Result<Self, HostError> {
        let path = env::current_exe();
        let path = path.map_err(|error| HostError::from_io("find this program", &error))?;
        Ok(Self { name, path, arguments, folder, domain, takeover: false })
    }
}

impl Program {
    /// Has each process that is started take its device over from the one that serves it, if one does.
    #[must_use]
    pub const fn taking_over(mut self, takeover: bool) -> Self {
        self.takeover = takeover;
        self
    }
}

impl Starter for Program {
    fn start(&self, spot: &Spot, since: Option<Instant>) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        if let Some(domain) = &self.domain {
            command.env(DOMAIN_VARIABLE, domain.to_string());
        }
        command.env_remove(SINCE);
        if let (Some(since), Some(now)) = (since, clock()) {
            let then = now.saturating_sub(since.elapsed());
            command.env(SINCE, then.as_nanos().to_string());
        }
        if self.takeover {
            command.arg("--takeover");
        }
        command
            .arg("--device")
            .arg(spot.to_string())
            .args(&self.arguments)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .spawn()
    }

    fn takes_over(&self) -> bool {
        self.takeover
    }

    fn is_served(&self, spot: &Spot) -> bool {
        UnixStream::connect(socket::path_named(self.name, &self.folder, &spot.name())).is_ok()
    }
}
