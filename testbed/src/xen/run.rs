//! A run: one scenario, or a shell, on a machine of its own.
//!
//! Before: [`super::boot`]. Dom0's init reports over the second serial port; lines that begin with
//! `@bed` are for us, all others are what the scenario says:
//!
//! | line | means |
//! | --- | --- |
//! | `@bed kernel N`, `@bed up N` | Dom0's kernel, and all of Dom0, is up, N seconds after its start |
//! | `@bed power-cut` | end the machine without a warning, and boot the next stage |
//! | `@bed ended N` | the scenario's status for this stage; everything is written |
//!
//! Logs: `target/testbed/logs/NAME`. A second run of the same name in the same checkout is refused.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::bed::Bed;
use super::boot::{self, Options};
use super::cache;
use super::scenario::Scenario;
use crate::programs::{self, Build, Products, workspace};
use crate::vm::Archive;

/// The work disk: sparse, made anew for each run, kept over its stages.
const WORK_BYTES: u64 = 32 << 30;
/// How long Xen and Dom0 may take to come up.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// Programs that no guest runs: each guest holds its own in memory.
const DOM0_ONLY: [&str; 2] = ["blkback", "netback"];

/// How a scenario's line begins that says why it fails (`fail` of lib.sh).
const FAILED: &str = "FAILED: ";

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// It did not, for this reason.
    Failed(String),
}

/// The place of a run: what the machine sees of it, and its logs.
struct Place {
    folder: PathBuf,
    logs: PathBuf,
    keep: bool,
    _only_one: Flock<File>,
}

impl Place {
    fn new(name: &str, bed: &Bed, keep: bool) -> Result<Self> {
        let base = workspace().join("target/testbed");
        let (folder, logs) = (base.join("runs").join(name), base.join("logs").join(name));
        fs::create_dir_all(base.join("runs"))?;
        let lock = base.join("runs").join(format!("{name}.lock"));
        let only_one = cache::lock(&lock, FlockArg::LockExclusiveNonblock).with_context(|| {
            format!("another run of '{name}' in this checkout is under way; wait for it")
        })?;
        cache::remove(&folder)?;
        cache::remove(&logs)?;
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(&logs)?;
        let (folder, logs) = (fs::canonicalize(folder)?, fs::canonicalize(logs)?);
        symlink(&logs, folder.join("logs"))?;
        boot::lay_out(bed, &folder)?;
        File::create(folder.join("work.img"))?.set_len(WORK_BYTES)?;
        Ok(Self { folder, logs, keep, _only_one: only_one })
    }

    /// Fills the folder that Dom0 sees as /bed.
    fn share(&self, programs: Option<&Path>, tests: &[String]) -> Result<()> {
        let shared = self.folder.join("bed");
        for folder in ["dom0", "scenarios", "hotplug", "bin", "tests"] {
            fs::create_dir_all(shared.join(folder))?;
        }
        for folder in ["dom0", "scenarios"] {
            copy_all(&workspace().join("testbed").join(folder), &shared.join(folder))?;
        }
        copy_all(&workspace().join("blkback/hotplug"), &shared.join("hotplug"))?;
        let mut guest = Archive::new();
        guest.file("init", 0o755, include_bytes!("../../guest/init"))?;
        guest.file("bed-agent", 0o755, include_bytes!("../../guest/agent"))?;
        let programs = match programs {
            Some(folder) => programs_in(folder)?,
            None => programs::all(Build::Static)?,
        };
        for (name, program) in programs {
            fs::copy(&program, shared.join("bin").join(&name))?;
            if DOM0_ONLY.contains(&name.as_str()) {
                continue;
            }
            guest.file(&format!("usr/bin/{name}"), 0o755, &self.small(&program)?)?;
        }
        for test in tests {
            let (package, name) =
                test.split_once('/').with_context(|| format!("test '{test}': no package/test"))?;
            let program = programs::static_test(package, name)?;
            fs::copy(&program, shared.join("tests").join(name))?;
        }
        guest.write(File::create(shared.join("guest.cpio"))?)
    }
}

impl Place {
    /// A program without what only a debugger reads, if that can be taken off here: every guest
    /// holds it in memory.
    fn small(&self, program: &Path) -> Result<Vec<u8>> {
        let stripped = self.folder.join("stripped");
        let strip = Command::new("strip")
            .args(["--strip-debug", "-o"])
            .args([stripped.as_path(), program])
            .stdin(Stdio::null())
            .status();
        let made = strip.is_ok_and(|status| status.success());
        let from = if made { stripped.as_path() } else { program };
        fs::read(from).with_context(|| format!("read {}", from.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing to be done about what stays: the next run of this name removes it.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The programs that lie in `folder`, by their names.
fn programs_in(folder: &Path) -> Result<Products> {
    let mut programs = Products::new();
    for entry in fs::read_dir(folder).with_context(|| format!("look into {}", folder.display()))? {
        let path = entry?.path();
        let runs = path.metadata().is_ok_and(|about| about.is_file() && about.mode() & 0o111 != 0);
        if let (true, Some(name)) = (runs, path.file_name().and_then(|name| name.to_str())) {
            programs.insert(name.to_owned(), path.clone());
        }
    }
    ensure!(!programs.is_empty(), "{} holds no program", folder.display());
    Ok(programs)
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("look into {}", from.display()))? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name)).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// Runs `scenario` and says what it says to `progress`, line by line.
///
/// # Errors
///
/// It could not be tried: something is missing.
pub fn run(
    bed: &Bed,
    scenario: &Scenario,
    options: &Options,
    keep: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<(Verdict, PathBuf)> {
    let place = Place::new(&scenario.name, bed, keep)?;
    place.share(options.programs.as_deref(), &scenario.tests)?;
    let name = "scenario.sh";
    fs::copy(&scenario.file, place.folder.join("bed").join(name))?;
    let mut log = File::create(place.logs.join("progress.log"))?;
    let began = Instant::now();
    let mut say = |line: &str| {
        let stamped = format!("{:7.1} s  {line}", began.elapsed().as_secs_f64());
        let _ = writeln!(log, "{stamped}");
        progress(&stamped);
    };
    let deadline = began.checked_add(scenario.limit).context("a limit beyond all time")?;
    let mut verdict = Verdict::Passed;
    for stage in 1..=scenario.stages {
        if scenario.stages > 1 {
            say(&format!("stage {stage} of {}", scenario.stages));
        }
        let words = format!("bed.run={name} bed.stage={stage}");
        let qemu = boot::qemu(options, &place.folder, &words)?;
        verdict = one_stage(qemu, deadline, &mut say)?;
        if verdict != Verdict::Passed {
            break;
        }
    }
    Ok((verdict, place.logs.clone()))
}

/// The machine, ended with this value.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn one_stage(mut qemu: Command, deadline: Instant, say: &mut dyn FnMut(&str)) -> Result<Verdict> {
    qemu.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut machine = Machine(qemu.stderr(Stdio::piped()).spawn().context("run qemu")?);
    let (stdout, stderr) = (machine.0.stdout.take(), machine.0.stderr.take());
    let (sender, lines) = mpsc::channel();
    let complaints = sender.clone();
    std::thread::spawn(move || forward(stdout, "", &sender));
    std::thread::spawn(move || forward(stderr, "qemu: ", &complaints));
    let boot_deadline = Instant::now().checked_add(BOOT_LIMIT).unwrap_or(deadline).min(deadline);
    let (mut up, mut last) = (false, String::from("nothing yet"));
    loop {
        let until = if up { deadline } else { boot_deadline };
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.strip_prefix("@bed ") {
                Some("power-cut") => {
                    say("the power goes");
                    return Ok(Verdict::Passed);
                }
                Some(word) if word.starts_with("ended ") => {
                    return Ok(match word {
                        "ended 0" => Verdict::Passed,
                        _ => Verdict::Failed(last.trim_start_matches(FAILED).into()),
                    });
                }
                Some(word) => {
                    up |= word.starts_with("up ");
                    say(&format!("Dom0: {word} s"));
                }
                None if line.is_empty() => {}
                None => {
                    say(&line);
                    // What failed first is the reason; what follows is its echo.
                    if !last.starts_with(FAILED) {
                        last = line;
                    }
                }
            },
            Err(RecvTimeoutError::Timeout) if up => {
                return Ok(Verdict::Failed(format!("it took too long; the last line was: {last}")));
            }
            Err(RecvTimeoutError::Timeout) => {
                return Ok(Verdict::Failed("Xen and Dom0 did not come up; see console.log".into()));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let why = "the machine ended of itself (did Xen or Dom0 crash? see console.log)";
                return Ok(Verdict::Failed(format!("{why}; the last line was: {last}")));
            }
        }
    }
}

fn forward(from: Option<impl std::io::Read>, prefix: &str, to: &mpsc::Sender<String>) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
        if to.send(format!("{prefix}{text}")).is_err() {
            return;
        }
        line.clear();
    }
}

/// Boots Dom0 with a shell on this terminal, until that ends.
///
/// # Errors
///
/// Something is missing, or this is no terminal.
pub fn shell(bed: &Bed, options: &Options, keep: bool) -> Result<PathBuf> {
    let place = Place::new("shell", bed, keep)?;
    place.share(options.programs.as_deref(), &[])?;
    let size = succeed_here("stty", &["size"]).context("a shell needs a terminal")?;
    let (rows, columns) = size.trim().split_once(' ').context("the terminal has no size")?;
    let term = std::env::var("TERM").unwrap_or_else(|_| "linux".into());
    let words = format!("bed.shell bed.rows={rows} bed.cols={columns} bed.term={term}");
    let mut qemu = boot::qemu(options, &place.folder, &words)?;
    qemu.args(["-chardev", "stdio,id=line,mux=on,signal=off", "-mon", "chardev=line"])
        .args(["-serial", "chardev:line"]);
    let status = qemu.status().context("run qemu")?;
    if !status.success() {
        bail!("qemu ended with {status}; logs: {}", place.logs.display());
    }
    Ok(place.logs.clone())
}

/// What `program` prints, with our standard input.
fn succeed_here(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::inherit())
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
