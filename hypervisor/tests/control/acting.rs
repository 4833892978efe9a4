//! What else is done with a hypervisor and the processes in it.

use std::process::{ExitStatus, Stdio};

use hypervisor::embedded::Control;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::stage::{Running, Stage, tool};

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }
}

impl Stage {
    pub(crate) fn control(&self) -> Control {
        Control::connect(&self.place()).unwrap()
    }

    /// A domain with a shell script in it.
    pub(crate) fn domain(&self, name: &str, options: &[&str], script: &str) -> Running {
        let mut command = tool(self.folder());
        command.args(["create", name]).args(options).args(["--", "sh", "-c", script]);
        Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()))
    }

    /// Ends it as an administrator would; how it ended.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.hypervisor.signal(Signal::SIGTERM);
        self.hypervisor.0.wait().unwrap()
    }
}
