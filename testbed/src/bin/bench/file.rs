//! A file through the path, against the same file without it: fio drives both.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testbed::packages::{self, FIO};
use testbed::programs::{self, Build, workspace};
use testbed::scene::{Scene, to_its_end};

use crate::table::{Table, rate, ratio};

pub(crate) const MIB: u64 = 256;

const CASES: [(&str, &str, u32); 4] = [
    ("reads, depth 1", "randread", 1),
    ("reads, depth 32", "randread", 32),
    ("writes, depth 1", "randwrite", 1),
    ("writes, depth 32", "randwrite", 32),
];

/// A place for the file, and whether it is used past the page cache there.
struct Medium {
    name: &'static str,
    folder: PathBuf,
    direct: bool,
}

pub(crate) fn measure(scene: &Scene, rounds: u32, seconds: u32) -> Result<Table> {
    packages::ensure(&[FIO])?;
    let engine = programs::build("fio-engine", "domkit_fio", Build::Release)?;
    let media = [
        Medium { name: "tmpfs", folder: "/dev/shm".into(), direct: false },
        Medium { name: "disk, O_DIRECT", folder: workspace().join("target"), direct: true },
    ];
    let mut table = Table::new(
        &format!(
            "4 KiB random, a file of {MIB} MiB, requests a second: fio with its own io_uring on \
             the file, and fio through blkfront and blkback (median of {rounds}, {seconds} s each)"
        ),
        "medium",
        &[("raw", rate), ("through", rate), ("ratio", ratio), ("with a journal", rate)],
    );
    for round in 1..=rounds {
        eprintln!("file: round {round} of {rounds}");
        for medium in &media {
            let file = Filled::make(&medium.folder, "file")?;
            for (name, rw, depth) in CASES {
                let row = format!("{}, {name}", medium.name);
                let raw = raw(&file.0, medium.direct, rw, depth, seconds)?;
                let through = |more: &[&str]| {
                    through(scene, &engine, (&file.0, medium.direct), (rw, depth), seconds, more)
                };
                let without = through(&[])?;
                table.add(&row, 0, raw);
                table.add(&row, 1, without);
                table.add(&row, 2, without / raw);
                table.add(&row, 3, through(&["--journal"])?);
            }
        }
    }
    Ok(table)
}

/// A file without holes, gone when this is.
pub(crate) struct Filled(PathBuf);

impl Filled {
    pub(crate) fn make(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("domkit-bench-{}-{name}.img", std::process::id()));
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        let filled = Self(path);
        let block = vec![0xA5; 1 << 20];
        for _ in 0..MIB {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        Ok(filled)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // A scratch file; that it cannot be removed is no reason to fail.
        let _ = fs::remove_file(&self.0);
    }
}

fn fio(rw: &str, depth: u32, seconds: u32) -> Result<Command> {
    let mut fio = Command::new(packages::find(FIO).context("fio is installed")?);
    fio.args(["--name=bench", "--bs=4k", "--time_based", "--thread", "--output-format=json"])
        .args(["--randrepeat=0", "--norandommap", "--gtod_reduce=1"])
        .args([format!("--rw={rw}"), format!("--iodepth={depth}"), format!("--runtime={seconds}")]);
    Ok(fio)
}

fn iops(command: Command, rw: &str, seconds: u32) -> Result<f64> {
    let limit = Duration::from_secs(u64::from(seconds).saturating_add(120));
    let output = to_its_end(command, limit)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("fio: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let json = text.find('{').and_then(|at| text.get(at..)).context("fio prints JSON")?;
    let report: serde_json::Value = serde_json::from_str(json)?;
    let job = report.get("jobs").and_then(|jobs| jobs.get(0)).context("a job")?;
    let error = job.get("error").and_then(serde_json::Value::as_i64);
    anyhow::ensure!(error == Some(0), "fio's job failed: {job}");
    let side = if rw == "randread" { "read" } else { "write" };
    let figure = job.get(side).and_then(|side| side.get("iops"));
    figure.and_then(serde_json::Value::as_f64).context("fio tells IOPS")
}

fn raw(file: &Path, direct: bool, rw: &str, depth: u32, seconds: u32) -> Result<f64> {
    let mut fio = fio(rw, depth, seconds)?;
    fio.arg("--ioengine=io_uring")
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--direct={}", u8::from(direct)));
    iops(fio, rw, seconds)
}

fn through(
    scene: &Scene,
    engine: &Path,
    (file, direct): (&Path, bool),
    (rw, depth): (&str, u32),
    seconds: u32,
    more: &[&str],
) -> Result<f64> {
    let direct = if direct { "on" } else { "off" };
    let serve = [more, &["--queues", "1", "--direct", direct, "--image"]].concat();
    let mut blkback = scene.start(
        "blkback",
        "blkback",
        serve.iter().map(AsRef::as_ref).chain([file.as_os_str()]),
    )?;
    blkback.line_with("ready")?;
    let mut fio = fio(rw, depth, seconds)?;
    fio.env("DOMKIT_RUN", scene.place())
        .arg(format!("--ioengine=external:{}", engine.display()))
        .arg("--filename=xvda");
    let figure = iops(fio, rw, seconds)?;
    blkback.end()?;
    Ok(figure)
}
