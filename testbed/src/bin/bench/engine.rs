//! The path itself: what is left when the medium costs nothing.

use anyhow::{Context, Result};
use testbed::scene::Scene;

use crate::cpu::cpu_seconds;
use crate::table::{Table, fine, rate};

const DEPTHS: [u32; 3] = [1, 32, 128];

/// How both ends wait, and what the backend does besides.
const WAYS: [(&str, &[&str], &[&str]); 4] = [
    ("by event", &["--no-poll"], &[]),
    ("adaptive", &[], &[]),
    ("adaptive, with a journal", &[], &["--journal"]),
    ("polled", &["--poll"], &[]),
];

pub(crate) fn measure(scene: &Scene, rounds: u32, seconds: u32) -> Result<Table> {
    let mut table = Table::new(
        &format!(
            "4 KiB random reads through the whole path, requests a second, and microseconds of \
             backend CPU a request (median of {rounds}, {seconds} s each)"
        ),
        "engine, both ends waiting",
        &[
            ("depth 1", rate),
            ("depth 32", rate),
            ("depth 128", rate),
            ("CPU, 1", fine),
            ("CPU, 32", fine),
            ("CPU, 128", fine),
        ],
    );
    for round in 1..=rounds {
        eprintln!("engine: round {round} of {rounds}");
        for engine in ["null", "memory"] {
            for (name, flags, besides) in WAYS {
                let row = format!("{engine}, {name}");
                one(scene, engine, (flags, besides), seconds, |column, figure| {
                    table.add(&row, column, figure)
                })?;
            }
        }
    }
    Ok(table)
}

fn one(
    scene: &Scene,
    engine: &str,
    (flags, besides): (&[&str], &[&str]),
    seconds: u32,
    mut add: impl FnMut(usize, f64),
) -> Result<()> {
    let serve = ["--engine", engine, "--size", "1G", "--queues", "1"];
    let mut blkback =
        scene.start("blkback", "blkback", serve.iter().chain(flags).chain(besides))?;
    blkback.line_with("ready")?;
    for (column, depth) in DEPTHS.into_iter().enumerate() {
        let (depth, seconds) = (depth.to_string(), seconds.to_string());
        let arguments = ["bench", "--json", "--rw", "randread", "--depth", &depth];
        let before = cpu_seconds(&blkback)?;
        let said = scene.succeed(
            "blkfront",
            "blkfront",
            arguments.iter().chain(["--seconds", &seconds].iter()).chain(flags),
        )?;
        let cpu = cpu_seconds(&blkback)? - before;
        let said: serde_json::Value = serde_json::from_str(&said).context(said.clone())?;
        let figure =
            |key: &str| said.get(key).and_then(serde_json::Value::as_f64).context(key.to_owned());
        anyhow::ensure!(figure("errors")? == 0.0, "requests failed: {said}");
        add(column, figure("iops")?);
        add(column.saturating_add(DEPTHS.len()), cpu * 1e6 / figure("requests")?.max(1.0));
    }
    blkback.end()?;
    Ok(())
}
