//! fio as a guest: the stock program with the project's engine, which makes it a domain.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::packages::{self, FIO};
use crate::programs::{Build, build};
use crate::scene::{Scene, to_its_end};
use crate::skip;

/// The one version whose structures the engine knows.
const VERSION: &str = "fio-3.33";
/// How long a run may take before it counts as stuck.
const LIMIT: Duration = Duration::from_secs(300);

/// Whether fio is here, or could be installed, in the version that the engine knows. If not, says
/// that `test` is skipped.
///
/// # Panics
///
/// Where skipping is not allowed.
#[must_use]
pub fn unless_here(test: &str) -> bool {
    if !skip::unless_installed(test, &[FIO]) {
        return false;
    }
    let said = packages::find(FIO).and_then(|fio| Command::new(fio).arg("--version").output().ok());
    let version = said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    let known = version.as_deref() == Some(VERSION);
    if !known {
        let found = version.unwrap_or_default();
        skip::because(
            test,
            &format!("the engine knows {VERSION} as Debian 12 has it, not {found}"),
        );
    }
    known
}

/// What one job did.
#[derive(Clone, Debug, Deserialize)]
pub struct Job {
    /// Its name in the job file.
    #[serde(rename = "jobname")]
    pub name: String,
    /// A positive `errno`, or 0.
    pub error: i32,
    /// Errors that it went on after.
    #[serde(default)]
    pub total_err: u64,
    /// What it read, the reads that verify included.
    pub read: Side,
    /// What it wrote.
    pub write: Side,
    /// What it discarded.
    pub trim: Side,
}

/// What a job did in one direction.
#[derive(Clone, Debug, Deserialize)]
pub struct Side {
    /// Requests.
    pub total_ios: u64,
    /// Bytes.
    pub io_bytes: u64,
}

/// What fio writes with `--output-format=json`, as far as it is used here.
#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

/// fio in `scene`, ready to be run with `jobs`, a job file without its `[global]` heading; it
/// becomes the domain `guest` and writes its report to `name`.json in the scene's folder.
///
/// # Errors
///
/// The engine cannot be built, or the job file not be written.
pub fn command(scene: &Scene, name: &str, jobs: &str) -> Result<Command> {
    let engine = build("fio-engine", "domkit_fio", Build::Tests)?;
    let file = scene.folder().join(format!("{name}.fio"));
    let global = "[global]\nthread=1\nfilename=xvda\nverify_state_save=0\nverify_fatal=1\n";
    fs::write(&file, format!("{global}{jobs}"))?;
    let mut fio = Command::new(packages::find(FIO).context("fio is installed")?);
    fio.current_dir(scene.folder())
        .env("DOMKIT_RUN", scene.place())
        .args(["--output-format=json", &format!("--output={name}.json")])
        .arg(format!("--ioengine=external:{}", engine.display()))
        .arg(file);
    Ok(fio)
}

/// Runs `fio`, which [`command`] made with this `name`, to its end; every job must end without an
/// error.
///
/// # Errors
///
/// fio cannot be run, takes too long, or reports an error; what it said is part of it.
pub fn run(scene: &Scene, name: &str, fio: Command) -> Result<Vec<Job>> {
    let output = to_its_end(fio, LIMIT)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("fio {name}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stdout));
    }
    jobs(scene, name).with_context(|| said)
}

/// The report that the fio which [`command`] made with this `name` has left.
///
/// # Errors
///
/// There is none, or it tells of an error.
pub fn jobs(scene: &Scene, name: &str) -> Result<Vec<Job>> {
    let text = fs::read_to_string(scene.folder().join(format!("{name}.json")))?;
    let report: Report =
        serde_json::from_str(&text).with_context(|| format!("fio {name}'s report: {text}"))?;
    ensure!(!report.jobs.is_empty(), "fio {name} ran no job: {text}");
    for job in &report.jobs {
        ensure!(job.error == 0 && job.total_err == 0, "fio {name}: {job:?}");
    }
    Ok(report.jobs)
}
