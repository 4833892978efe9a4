//! What the path costs, as ratios within one run: medians of several rounds, in each of which every
//! case is measured once, so that what else the machine does falls on all of them alike.
//!
//! - `engine`: the whole path in front of an engine that does nothing, and of one that keeps bytes in
//!   memory, with both ends sleeping, both adaptive and both polling.
//! - `file`: fio through the path against fio's own io_uring on the same file.
//! - `idle`: what a connected guest that does nothing costs.
//! - `net`: what stock programs get of a network through netfront and netback, against what the kernel
//!   alone gives, and against two TAPs with nothing between them. Needs root.
//! - `virtio`: blkback over vhost-user against QEMU's storage daemon and servers of NBD.

mod cpu;
mod engine;
mod file;
mod idle;
mod net;
mod table;
mod virtio;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use testbed::programs::Build;
use testbed::scene::Scene;

use table::Table;

/// Measure the frontends and backends end to end, against what they stand in for
#[derive(Parser)]
#[command(name = "cargo bench-path", version)]
struct Args {
    /// Which part; all of them by default
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How often each case is measured; the median is shown
    #[arg(long, default_value = "5", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// How long each measurement takes
    #[arg(long, default_value = "2", value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Of the part virtio, only rows whose names hold this
    #[arg(long, default_value = "", value_name = "TEXT")]
    rows: String,
    /// As JSON, with every round's figures
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The path in front of an engine that does nothing, or keeps bytes in memory
    Engine,
    /// A file through the path against the same file without it; needs fio
    File,
    /// What a guest that does nothing costs
    Idle,
    /// Networks: TCP, round trips and small packets; needs root and iperf3
    Net,
    /// Disks of virtual machines, against QEMU's storage daemon and NBD
    Virtio,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let mut tables: Vec<Table> = Vec::new();
    let scene = Scene::with("bench", Build::Release)?;
    let measured = measure(&args, &scene, &wanted, &mut tables);
    if measured.is_err() {
        scene.print_logs();
    }
    measured?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&tables)?);
    } else {
        for table in &tables {
            table.print();
        }
    }
    Ok(())
}

fn measure(
    args: &Args,
    scene: &Scene,
    wanted: &dyn Fn(Part) -> bool,
    tables: &mut Vec<Table>,
) -> Result<()> {
    let hypervisor = scene.hypervisor()?;
    if wanted(Part::Engine) {
        tables.push(engine::measure(scene, args.rounds, args.seconds)?);
    }
    if wanted(Part::File) {
        tables.push(file::measure(scene, args.rounds, args.seconds)?);
    }
    if wanted(Part::Idle) {
        tables.push(idle::measure(scene, args.rounds, args.seconds)?);
    }
    if wanted(Part::Net) {
        if nix::unistd::geteuid().is_root() {
            tables.extend(net::measure(scene, args.rounds, args.seconds)?);
        } else {
            anyhow::ensure!(args.only.is_none(), "networks need root: run this as root");
            eprintln!("net: left out, for it needs root");
        }
    }
    if wanted(Part::Virtio) {
        let (rounds, seconds, only) = (args.rounds, args.seconds, &args.rows);
        tables.extend(virtio::measure(&virtio::How { scene, rounds, seconds, only })?);
    }
    hypervisor.end()?;
    Ok(())
}
