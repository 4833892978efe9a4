//! A connected guest that does nothing.

use std::time::Duration;

use anyhow::Result;
use testbed::scene::Scene;

use crate::cpu::cpu_seconds;
use crate::table::{Table, fine};

pub(crate) fn measure(scene: &Scene, rounds: u32, seconds: u32) -> Result<Table> {
    let mut table = Table::new(
        &format!("A connected guest that does nothing for {seconds} s (median of {rounds})"),
        "process",
        &[("CPU seconds", fine)],
    );
    for _ in 0..rounds {
        let mut blkback =
            scene.start("blkback", "blkback", ["--engine", "memory", "--size", "64M"])?;
        blkback.line_with("ready")?;
        let socket = scene.folder().join("idle.sock");
        let mut guest = scene.start(
            "blkfront",
            "blkfront",
            ["nbd".as_ref(), "--unix".as_ref(), socket.as_os_str()],
        )?;
        guest.line_with("ready")?;
        let before = (cpu_seconds(&blkback)?, cpu_seconds(&guest)?);
        std::thread::sleep(Duration::from_secs(u64::from(seconds)));
        table.add("blkback", 0, cpu_seconds(&blkback)? - before.0);
        table.add("blkfront", 0, cpu_seconds(&guest)? - before.1);
        guest.end()?;
        blkback.end()?;
    }
    Ok(table)
}
