//! Networks: what stock programs and small packets get between a guest's namespace and its host.
//!
//! The host has a bridge with an address of its own; the guest reaches it in one of several [ways](Way),
//! all of which stand side by side while each measurement goes through one after the other.

mod packets;
mod way;

use std::time::Instant;

use anyhow::{Context, Result};
use testbed::network::v4;
use testbed::packages::{self, IP, IPERF3, PING};
use testbed::scene::Scene;

use crate::table::{Table, rate, ratio};
use packets::{Flood, Trips};
use way::Way;

pub(crate) fn measure(scene: &Scene, rounds: u32, seconds: u32) -> Result<[Table; 2]> {
    packages::ensure(&[IP, IPERF3, PING])?;
    let ways = way::all(scene)?;
    let how = format!("MTU 1500 (median of {rounds}, {seconds} s each)");
    let mut streams = Table::new(
        &format!("One TCP stream between a guest and the bridge of its host, {how}"),
        "the guest is behind",
        &[
            ("to host, Gbit/s", ratio),
            ("ratio", ratio),
            ("sent again", rate),
            ("CPU s/GB", ratio),
            ("to guest, Gbit/s", ratio),
            ("ratio", ratio),
            ("sent again", rate),
            ("CPU s/GB", ratio),
        ],
    );
    let mut small = Table::new(
        &format!("UDP in frames of 64 bytes between them, {how}"),
        "the guest is behind",
        &[
            ("round trip, us", rate),
            ("99 %, us", rate),
            ("ratio", ratio),
            ("lost, %", ratio),
            ("to host, a second", rate),
            ("lost, %", ratio),
            ("to guest, a second", rate),
            ("lost, %", ratio),
        ],
    );
    for round in 1..=rounds {
        eprintln!("net: round {round} of {rounds}");
        for (first, reverse) in [(0, None), (4, Some("-R"))] {
            let mut best = None;
            for way in &ways {
                let Stream { gigabits, again, cpu } = stream(way, seconds, reverse)?;
                let compared = gigabits / *best.get_or_insert(gigabits);
                let figures = [gigabits, compared, again, cpu];
                for (column, figure) in (first..).zip(figures) {
                    streams.add(way.name, column, figure);
                }
            }
        }
        let mut best = None;
        for way in &ways {
            let Trips { median, most, lost } = packets::round_trips(way, seconds)?;
            let compared = median / *best.get_or_insert(median);
            for (column, figure) in (0..).zip([median, most, compared, lost]) {
                small.add(way.name, column, figure);
            }
        }
        for (first, to_guest) in [(4, false), (6, true)] {
            for way in &ways {
                let Flood { rate, lost } = packets::flood(way, to_guest, seconds)?;
                for (column, figure) in (first..).zip([rate, lost]) {
                    small.add(way.name, column, figure);
                }
            }
        }
    }
    ways.into_iter().try_for_each(Way::end)?;
    Ok([streams, small])
}

/// What one stream got.
struct Stream {
    gigabits: f64,
    /// Segments that were sent once more.
    again: f64,
    /// What all processors did meanwhile, in seconds for each 10^9 bytes.
    cpu: f64,
}

fn stream(way: &Way, seconds: u32, reverse: Option<&str>) -> Result<Stream> {
    let seconds = seconds.to_string();
    let arguments: Vec<&str> = ["-t", &seconds].into_iter().chain(reverse).collect();
    let (before, began) = (busy()?, Instant::now());
    let report = way.guest.iperf3(&v4(1), &arguments)?;
    let (cpu, took) = (busy()? - before, began.elapsed().as_secs_f64());
    let figure = |pointer: &str| {
        let value = report.pointer(pointer).and_then(serde_json::Value::as_f64);
        value.with_context(|| format!("iperf3 does not say {pointer}: {report}"))
    };
    let bits = figure("/sum_received/bits_per_second")?;
    anyhow::ensure!(bits > 0.0, "nothing came in {took} s: {report}");
    Ok(Stream {
        gigabits: bits / 1e9,
        again: figure("/sum_sent/retransmits")?,
        cpu: cpu / (figure("/sum_received/bytes")? / 1e9),
    })
}

/// For how long processors have been doing something, all of them together (proc_stat(5)).
fn busy() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat has a line")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks.as_slice() else {
        anyhow::bail!("/proc/stat: {line}");
    };
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok((user + nice + system + irq + softirq) / a_second as f64)
}
