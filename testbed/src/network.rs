//! Network namespaces: hosts and guests whose networks touch nothing of this machine's.
//!
//! Each has a name that no other run uses, and is removed with the value, and all its interfaces with it.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::packages::{self, IP, IPERF3, PING};
use crate::scene::{PATIENCE, Process, Scene, to_its_end, until};
use crate::skip;

/// Whether network namespaces, TAPs and the programs that use them can be had. If not, says that
/// `test` is skipped.
///
/// # Panics
///
/// Where skipping is not allowed.
#[must_use]
pub fn unless_here(test: &str) -> bool {
    if !skip::unless_root(test) || !skip::unless_installed(test, &[IP, IPERF3, PING]) {
        return false;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        skip::because(test, "there is no /dev/net/tun; load the module tun");
        return false;
    }
    match Namespace::new().and_then(|host| host.bridge("br0")) {
        Ok(()) => true,
        Err(error) => {
            skip::because(test, &format!("no namespace with a bridge is to be had: {error:#}"));
            false
        }
    }
}

/// A network namespace with a name.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, with nothing in it but a loopback.
    ///
    /// # Errors
    ///
    /// The kernel has none for us.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("domkit-{}-{count}", std::process::id());
        ip(["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip` in it, which must succeed; answers what it wrote.
    ///
    /// # Errors
    ///
    /// It fails; the error holds what it wrote.
    pub fn ip<'a>(&'a self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        ip(["-n", &self.name].into_iter().chain(arguments))
    }

    /// A bridge in it that forwards at once.
    ///
    /// # Errors
    ///
    /// The kernel has none.
    pub fn bridge(&self, name: &str) -> Result<()> {
        self.ip(["link", "add", name, "type", "bridge", "forward_delay", "0"])?;
        self.ip(["link", "set", name, "up"]).map(drop)
    }

    /// Gives an interface an IPv4 and an IPv6 address that end in `number`.
    ///
    /// # Errors
    ///
    /// There is no such interface.
    pub fn address(&self, interface: &str, number: u8) -> Result<()> {
        let (v4, v6) = (format!("{}/24", v4(number)), format!("{}/64", v6(number)));
        self.ip(["addr", "add", &v4, "dev", interface])?;
        self.ip(["addr", "add", &v6, "dev", interface, "nodad"]).map(drop)
    }

    /// What the kernel says of an interface in it; nothing where there is none.
    #[must_use]
    pub fn link(&self, interface: &str) -> Option<Value> {
        let said = self.ip(["-j", "-d", "link", "show", "dev", interface]).ok()?;
        serde_json::from_str::<Value>(&said).ok()?.get(0).cloned()
    }

    /// Waits until an interface is there and its link is up.
    ///
    /// # Errors
    ///
    /// It never is.
    pub fn until_up(&self, interface: &str) -> Result<()> {
        until(&format!("{interface} in {} is up", self.name), || {
            let link = self.link(interface);
            let flags = link.as_ref().and_then(|link| link["flags"].as_array().cloned());
            Ok(flags.is_some_and(|flags| flags.contains(&Value::from("LOWER_UP"))))
        })
    }

    /// Does `work` in it, on a thread of its own. Sockets that are made there stay in it, whoever uses
    /// them.
    ///
    /// # Errors
    ///
    /// It cannot be entered, or the work's own.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let entered = || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            work()
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(entered).join();
            thread.unwrap_or_else(|_| Err(anyhow!("a thread in {} panicked", self.name)))
        })
    }

    /// `command`, to be run in it.
    ///
    /// # Errors
    ///
    /// There is no `ip`.
    pub fn inside(&self, command: &Command) -> Result<Command> {
        let mut entered = Command::new(packages::find(IP).context("ip is installed")?);
        entered.args(["netns", "exec", &self.name]);
        entered.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => entered.env(key, value),
                None => entered.env_remove(key),
            };
        }
        Ok(entered)
    }

    /// One of the project's programs in it, to go on in the background.
    ///
    /// # Errors
    ///
    /// It cannot be built or started.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        scene: &Scene,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Process> {
        let mut command = scene.program(program, program)?;
        command.args(arguments);
        scene.start_command(program, self.inside(&command)?)
    }

    /// Any program in it, run to its end.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not end.
    pub fn run(&self, command: &Command) -> Result<Output> {
        to_its_end(self.inside(command)?, PATIENCE)
    }

    /// Whether somebody answers at `address`, asked `count` times with so many bytes that must stay in
    /// one piece.
    ///
    /// # Errors
    ///
    /// There is no `ping`.
    pub fn ping(&self, address: &str, bytes: usize) -> Result<bool> {
        let mut ping = Command::new(packages::find(PING).context("ping is installed")?);
        let bytes = bytes.to_string();
        ping.args(["-c", "1", "-W", "1", "-n", "-q", "-M", "do", "-s", &bytes, address]);
        Ok(self.run(&ping)?.status.success())
    }

    /// Asks `address` so many times with so many bytes, a hundred times a second, and says how often it was
    /// answered and what `ping` says of how long that took, in milliseconds.
    ///
    /// # Errors
    ///
    /// There is no `ping`, or it says nothing that can be read.
    pub fn pings(&self, address: &str, count: u32, bytes: usize) -> Result<(u32, String)> {
        let mut ping = Command::new(packages::find(PING).context("ping is installed")?);
        let (many, bytes) = (count.to_string(), bytes.to_string());
        ping.args(["-c", &many, "-i", "0.01", "-W", "5", "-n", "-q", "-M", "do", "-s", &bytes]);
        ping.arg(address);
        let said = String::from_utf8_lossy(&self.run(&ping)?.stdout).into_owned();
        let answered = said.split(", ").find_map(|part| part.strip_suffix(" received"));
        let answered = answered.and_then(|number| number.parse().ok());
        let times = said.lines().find(|line| line.contains("min/avg/max"));
        let times = times.and_then(|line| line.split(" = ").nth(1)).unwrap_or("nobody answered");
        Ok((answered.with_context(|| said.clone())?, times.to_owned()))
    }

    /// Waits until somebody answers there.
    ///
    /// # Errors
    ///
    /// Nobody ever does.
    pub fn until_answered(&self, address: &str, bytes: usize) -> Result<()> {
        until(&format!("{address} answers in {}", self.name), || self.ping(address, bytes))
    }

    /// An iperf3 that serves whoever asks, until it is dropped.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn iperf3_server(&self, scene: &Scene) -> Result<Process> {
        let mut command = Command::new(packages::find(IPERF3).context("iperf3 is installed")?);
        command.args(["-s", "--forceflush"]);
        let mut server = scene.start_command("iperf3", self.inside(&command)?)?;
        server.line_with("Server listening")?;
        Ok(server)
    }

    /// Runs iperf3 against the one at `address`, and answers the end of its report.
    ///
    /// # Errors
    ///
    /// It fails; the error holds what it wrote.
    pub fn iperf3(&self, address: &str, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(packages::find(IPERF3).context("iperf3 is installed")?);
        command.args(["-J", "-c", address]).args(arguments);
        let output = self.run(&command)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&said)
            .with_context(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(output.status.success() && report.get("error").is_none(), "iperf3: {report}");
        report.get("end").cloned().with_context(|| format!("iperf3: {report}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// The IPv4 address that ends in `number`.
#[must_use]
pub fn v4(number: u8) -> String {
    format!("10.77.0.{number}")
}

/// The IPv6 address that ends in `number`.
#[must_use]
pub fn v6(number: u8) -> String {
    format!("fd77::{number:x}")
}

fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let mut command = Command::new(packages::find(IP).context("ip is installed")?);
    command.args(arguments);
    let shown = format!("{command:?}");
    let output = to_its_end(command, PATIENCE)?;
    if !output.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
