//! A disk and a network interface served to guest domains on this machine, verified and measured, in one
//! command.
//!
//! Starts the real programs as separate processes, as one would by hand: the embedded hypervisor,
//! `blkback` with an image file in one domain, and `blkfront` as a guest in another. Every byte of
//! the disk is written and read back through the whole path; then random reads and writes are measured
//! through it, and on the image file itself without it. As root, `netback` and `netfront` follow, a host
//! and a guest in two network namespaces.

mod network;
mod raw;
mod report;
mod stage;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use testbed::programs::Build;
use testbed::scene::Scene;

use report::{Case, Measured, Report};
use stage::Stages;

/// Serve a disk image to a guest domain on this machine, verify it, and measure it; then a network
///
/// Needs no Xen, and root for the network only. Nothing stays behind but the build.
#[derive(Parser)]
#[command(name = "cargo quickstart", version)]
struct Args {
    /// Size of the disk, in MiB
    #[arg(long, default_value = "256", value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(8..=1_048_576))]
    size: u64,
    /// How long each measurement takes, in seconds
    #[arg(long, default_value = "2", value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Where the image is made, on the file system to be measured
    #[arg(long, default_value = "target", value_name = "FOLDER")]
    folder: PathBuf,
    /// The results as one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What is measured: how, and with how many requests at a time.
const CASES: [Case; 3] = [
    Case { write: false, depth: 1 },
    Case { write: false, depth: 32 },
    Case { write: true, depth: 32 },
];

fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.folder)
        .with_context(|| format!("make the folder {}", args.folder.display()))?;
    let stages = Stages::new(args.json);

    let scene = stages.run("building the programs", || {
        let scene = Scene::with("quickstart", Build::Release)?;
        for program in ["hypervisor", "blkback", "blkfront", "netback", "netfront"] {
            scene.program(program, program)?;
        }
        Ok((scene, "hypervisor, blkback, blkfront, netback and netfront, optimised".to_owned()))
    })?;
    let report = serve(&args, &stages, &scene);
    if report.is_err() {
        scene.print_logs();
    }
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

fn serve(args: &Args, stages: &Stages, scene: &Scene) -> Result<Report> {
    let image = Image::make(&args.folder, args.size)?;
    let direct = raw::direct_works(&image.0);

    let hypervisor = stages.run("starting the hypervisor", || {
        let hypervisor = scene.hypervisor()?;
        let said = hypervisor.written();
        Ok((hypervisor, said.trim().replace('\n', "\n      ")))
    })?;
    let blkback = stages.run("serving the image", || {
        let mut blkback = scene.start(
            "blkback",
            "blkback",
            [
                "--image".as_ref(),
                image.0.as_os_str(),
                "--direct".as_ref(),
                if direct { "on" } else { "off" }.as_ref(),
            ],
        )?;
        let said = blkback.line_with("ready")?;
        Ok((blkback, said))
    })?;
    stages.run("writing and reading back every byte, as the guest", || {
        verify(scene, args.size).map(|said| ((), said))
    })?;

    let mut report = Report::new(args.size, args.seconds, direct);
    for case in CASES {
        let name = format!("measuring {case}");
        stages.run(&name, || {
            let through = through(scene, case, args.seconds)?;
            let raw = raw::measure(&image.0, direct, case, args.seconds)?;
            let said = format!("{} through the path, {} raw", through.iops(), raw.iops());
            report.add(case, through, raw);
            Ok(((), said))
        })?;
    }
    match network::why_not() {
        Some(why) => stages.run("the network", || Ok(((), why.to_owned())))?,
        None => report.network = Some(network::show(scene, stages, args.seconds)?),
    }
    stages.run("ending", || {
        blkback.end()?;
        hypervisor.end()?;
        Ok(((), "every process ended in good order".to_owned()))
    })?;
    Ok(report)
}

/// The image file, gone when this is.
struct Image(PathBuf);

impl Image {
    fn make(folder: &Path, mib: u64) -> Result<Self> {
        let path = folder.join(format!("quickstart-{}.img", std::process::id()));
        let shown = path.display().to_string();
        let file = File::create(&path).with_context(|| format!("create {shown}"))?;
        let image = Self(path);
        let bytes = mib.checked_mul(1 << 20).context("the size is beyond all files")?;
        file.set_len(bytes).with_context(|| format!("make {shown} {mib} MiB long"))?;
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The file is a scratch file; that it cannot be removed is no reason to fail.
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes bytes that are nowhere the same to the whole disk, and reads and compares them.
fn verify(scene: &Scene, mib: u64) -> Result<String> {
    let (written, read) = (scene.folder().join("written"), scene.folder().join("read"));
    let mut file = File::create(&written)?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..mib {
        for word in block.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        file.write_all(&block)?;
    }
    drop(file);
    scene.succeed("blkfront", "blkfront", ["write".as_ref(), written.as_os_str()])?;
    scene.succeed("blkfront", "blkfront", ["read".as_ref(), "-o".as_ref(), read.as_os_str()])?;
    let (a, b) = (fs::read(&written)?, fs::read(&read)?);
    fs::remove_file(&written)?;
    fs::remove_file(&read)?;
    if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
        bail!("what was read differs from what was written, first at byte {at}");
    }
    if a.len() != b.len() {
        bail!("{} bytes were written and {} read", a.len(), b.len());
    }
    Ok(format!("{mib} MiB written and read back, all equal"))
}

/// Measures a case through blkfront and blkback.
fn through(scene: &Scene, case: Case, seconds: u64) -> Result<Measured> {
    let mode = if case.write { "randwrite" } else { "randread" };
    let output = scene.succeed(
        "blkfront",
        "blkfront",
        [
            "bench",
            "--json",
            "--rw",
            mode,
            "--depth",
            &case.depth.to_string(),
            "--seconds",
            &seconds.to_string(),
        ],
    )?;
    Measured::from_bench(&output)
}
