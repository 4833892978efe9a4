//! A scene: real programs in a folder of their own, ended with the scene.
//!
//! Every process finds the scene's own hypervisor through `DOMKIT_RUN`, so scenes run side by side
//! and never touch what else runs on the machine. If a test fails, its scene prints what every
//! process wrote.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::{Build, build};

/// How long anything in a scene may take before it counts as stuck. Generous: the machine may be
/// slow and busy, and nothing is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A folder and the processes that live in it.
pub struct Scene {
    folder: tempfile::TempDir,
    how: Build,
    started: AtomicU32,
}

impl Scene {
    /// A scene with nothing in it yet, whose programs are built as the tests are.
    ///
    /// # Errors
    ///
    /// The folder cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, Build::Tests)
    }

    /// A scene whose programs are built as `how` says.
    ///
    /// # Errors
    ///
    /// The folder cannot be made.
    pub fn with(name: &str, how: Build) -> Result<Self> {
        // Short: the path of a socket has at most 107 bytes.
        let folder = tempfile::Builder::new().prefix(&format!("domkit-{name}-")).tempdir()?;
        // Closed to others, or no hypervisor takes it.
        DirBuilder::new().mode(0o700).create(folder.path().join("run"))?;
        Ok(Self { folder, how, started: AtomicU32::new(0) })
    }

    /// The scene's folder, for images and other files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the scene's hypervisor and daemons have their sockets.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        self.folder().join("run")
    }

    /// One of the project's programs, ready to be given arguments: `program` of package `package`.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn program(&self, package: &str, program: &str) -> Result<Command> {
        let mut command = Command::new(build(package, program, self.how)?);
        command.env("DOMKIT_RUN", self.place()).env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        Ok(command)
    }

    /// Starts `program` of package `package`, to go on in the background.
    ///
    /// # Errors
    ///
    /// It cannot be built or started.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        package: &str,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Process> {
        let mut command = self.program(package, program)?;
        command.args(arguments);
        self.start_command(program, command)
    }

    /// Starts any command in the background, its output kept in the scene's folder.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_command(&self, name: &str, mut command: Command) -> Result<Process> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder().join(format!("{number:03}-{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Process { name: name.to_owned(), child, log, seen: 0 })
    }

    /// Starts the hypervisor and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It did not become ready.
    pub fn hypervisor(&self) -> Result<Process> {
        let mut hypervisor = self.start("hypervisor", "hypervisor", ["run"])?;
        hypervisor.line_with("ready:")?;
        Ok(hypervisor)
    }

    /// Runs one of the project's programs to its end and answers what it wrote.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not end.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        package: &str,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        let mut command = self.program(package, program)?;
        command.args(arguments);
        to_its_end(command, PATIENCE)
    }

    /// Runs one of the project's programs, which must succeed, and answers its standard output.
    ///
    /// # Errors
    ///
    /// It fails; the error holds what it wrote.
    pub fn succeed<A: AsRef<OsStr>>(
        &self,
        package: &str,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let arguments: Vec<OsString> =
            arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        let output = self.run(package, program, &arguments)?;
        if !output.status.success() {
            bail!(
                "{program} {arguments:?}: {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

impl Scene {
    /// Prints what every process of the scene wrote, in the order in which they were started.
    pub fn print_logs(&self) {
        let Ok(entries) = fs::read_dir(self.folder()) else { return };
        let mut logs: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        logs.sort();
        for log in logs {
            eprintln!("--- {}", log.display());
            eprintln!("{}", fs::read_to_string(&log).unwrap_or_default());
        }
    }
}

/// Runs `command` to its end, its output kept; kills it where that takes longer than `limit`.
///
/// # Errors
///
/// It cannot be started, or takes too long.
pub fn to_its_end(mut command: Command, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| shown.clone())?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let stdout = scope.spawn(move || drain(stdout));
        let stderr = scope.spawn(move || drain(stderr));
        let status = wait(&mut child, limit);
        if status.is_err() {
            // It must go, or the readers wait for ever.
            let _ = child.kill();
            let _ = child.wait();
        }
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        match status {
            Ok(status) => Ok(Output { status, stdout, stderr }),
            Err(error) => Err(error.context(format!(
                "{shown}\n{}{}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ))),
        }
    })
}

fn drain(from: Option<impl std::io::Read>) -> Vec<u8> {
    let mut all = Vec::new();
    if let Some(mut from) = from {
        // What came before an error is worth more than the error.
        let _ = from.read_to_end(&mut all);
    }
    all
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now().checked_add(limit).context("a limit beyond all time")?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            bail!("did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that runs in the background until it ends or the scene does.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    seen: u64,
}

impl Process {
    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has written so far.
    #[must_use]
    pub fn written(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for the next line that holds `text`; lines before it are passed over for good.
    ///
    /// # Errors
    ///
    /// The process ends, or takes too long; the error holds what it wrote.
    pub fn line_with(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now().checked_add(PATIENCE).context("a limit beyond all time")?;
        loop {
            // Asked before the log is read: what a process that has ended wrote is all there.
            let ended = self.child.try_wait()?;
            if let Some(line) = self.next_line_with(text)? {
                return Ok(line);
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) without '{text}':\n{}", self.name, self.written());
            }
            if Instant::now() >= deadline {
                bail!("{} did not say '{text}':\n{}", self.name, self.written());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn next_line_with(&mut self, text: &str) -> Result<Option<String>> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.seen))?;
        let mut fresh = Vec::new();
        file.read_to_end(&mut fresh)?;
        for line in fresh.split_inclusive(|byte| *byte == b'\n') {
            if !line.ends_with(b"\n") {
                break;
            }
            self.seen = self.seen.saturating_add(line.len() as u64);
            let line = String::from_utf8_lossy(line);
            if line.contains(text) {
                return Ok(Some(line.trim_end().to_owned()));
            }
        }
        Ok(None)
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// The process is no more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Stops it (SIGSTOP) and waits until every thread of it has: a thread that is running goes on for
    /// a while after the signal was sent.
    ///
    /// # Errors
    ///
    /// The process is no more, or does not stop.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let threads = format!("/proc/{}/task", self.child.id());
        until("every thread has stopped", || {
            for thread in fs::read_dir(&threads)? {
                // Behind the name, which is in brackets and may hold anything.
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                if !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Whether it is still there.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        wait(&mut self.child, PATIENCE)
            .with_context(|| format!("{}:\n{}", self.name, self.written()))
    }

    /// Asks it to end (SIGTERM) and waits until it did, with success.
    ///
    /// # Errors
    ///
    /// It does not end, or not with success.
    pub fn end(mut self) -> Result<String> {
        self.signal(Signal::SIGTERM)?;
        let status = self.ended()?;
        if !status.success() {
            bail!("{} ended with {status}:\n{}", self.name, self.written());
        }
        Ok(self.written())
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    ///
    /// It had ended by itself before.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.ended()?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("{} had ended before ({status}):\n{}", self.name, self.written());
        }
        Ok(())
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    ///
    /// The process is no more.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Its memory that is neither shared nor from a file, in KiB.
    ///
    /// # Errors
    ///
    /// The process is no more.
    pub fn private_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).context("no RssAnon")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long since.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `what` holds.
///
/// # Errors
///
/// It does not in all that time.
pub fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now().checked_add(PATIENCE).context("a limit beyond all time")?;
    while !holds()? {
        if Instant::now() >= deadline {
            bail!("never came true: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
