//! blkback over vhost-user against what else serves disks to a driver or a client in another process.
//!
//! One thread of this program is the driver, whoever serves. For each case the contenders are measured one
//! right after the other, each over a connection of its own. The server's CPU time is what the kernel
//! charges to its process, all threads (`clock_getcpuclockid(3)`), after a start that is not counted.

mod client;
mod nbd;
mod servers;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use testbed::packages::{self, NBDKIT, QEMU_NBD, QEMU_STORAGE_DAEMON};
use testbed::programs::workspace;
use testbed::scene::Scene;

use crate::cpu::cpu_time;
use crate::file::{Filled, MIB};
use crate::table::{Table, fine, rate, ratio};
use client::{Client, MOST, Waits};
use servers::{Medium, Server};

/// Bytes of a request.
const BLOCK: usize = 4096;
/// How long a connection is used before it is measured.
const START: Duration = Duration::from_millis(50);

const DEPTHS: [usize; 3] = [1, 32, MOST];
const OPERATIONS: [(&str, bool); 2] = [("reads", false), ("writes", true)];
const WAYS: [(&str, Waits); 2] = [("waiting", Waits::Asleep), ("polled", Waits::Looking)];

/// What one measurement saw.
struct Turn {
    requests: u64,
    took: Duration,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }
}

/// Places of whole blocks on a disk, by chance.
struct Offsets {
    blocks: u64,
    state: u64,
}

impl Offsets {
    fn of(size: u64) -> Self {
        let blocks = size.checked_div(BLOCK as u64).unwrap_or(0).max(1);
        Self { blocks, state: 0x9E37_79B9_7F4A_7C15 }
    }

    fn next(&mut self) -> u64 {
        // Marsaglia's xorshift64.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let block = self.state.checked_rem(self.blocks).unwrap_or(0);
        block.saturating_mul(BLOCK as u64)
    }
}

/// How it is measured.
pub(crate) struct How<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
    /// What a row's name has to hold.
    pub(crate) only: &'a str,
}

impl How<'_> {
    fn time(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds))
    }

    fn wants(&self, row: &str) -> bool {
        row.contains(self.only)
    }

    fn about(&self) -> String {
        format!("median of {}, {} s each", self.rounds, self.seconds)
    }

    /// Measures `drive` on a connection to `server`: requests a second, and microseconds of the server's CPU
    /// for each.
    fn turn(
        &self,
        server: &Server,
        mut drive: impl FnMut(Duration) -> Result<Turn>,
    ) -> Result<(f64, f64)> {
        drive(START)?;
        let before = cpu_time(&server.process)?;
        let turn = drive(self.time())?;
        let spent = cpu_time(&server.process)?.saturating_sub(before);
        Ok((turn.rate(), spent.as_secs_f64() * 1e6 / turn.requests.max(1) as f64))
    }
}

pub(crate) fn measure(how: &How<'_>) -> Result<Vec<Table>> {
    packages::ensure(&[QEMU_STORAGE_DAEMON, QEMU_NBD, NBDKIT])?;
    let folder = workspace().join("target");
    let cached = Filled::make(&folder, "cached")?;
    let direct = Filled::make(&folder, "direct")?;
    let media = [
        ("null", Medium::Null),
        ("cached file", Medium::File { path: cached.path(), direct: false }),
        ("file, O_DIRECT", Medium::File { path: direct.path(), direct: true }),
    ];
    let mut table = Table::new(
        &format!(
            "virtio-blk over vhost-user, 4 KiB random, files of {MIB} MiB: requests a second, and \
             microseconds of server CPU a request ({})",
            how.about()
        ),
        "medium",
        &[
            ("io_uring itself", rate),
            ("blkback", rate),
            ("QEMU", rate),
            ("QEMU, aio=threads", rate),
            ("to QEMU's best", ratio),
            ("CPU, blkback", fine),
            ("CPU, QEMU", fine),
            ("CPU, QEMU, threads", fine),
        ],
    );
    let mut nbd = Table::new(
        &format!(
            "A cached file of {MIB} MiB, 4 KiB random: blkback over vhost-user, its driver waiting, and \
             NBD over a Unix socket ({})",
            how.about()
        ),
        "",
        &[
            ("blkback", rate),
            ("qemu-nbd", rate),
            ("nbdkit", rate),
            ("to NBD's best", ratio),
            ("CPU, blkback", fine),
            ("CPU, qemu-nbd", fine),
            ("CPU, nbdkit", fine),
        ],
    );
    let mut idle = Table::new(
        &format!(
            "A connected driver that does nothing for {} s: CPU ms ({})",
            how.seconds,
            how.about()
        ),
        "server",
        &[("null", fine), ("cached file", fine), ("file, O_DIRECT", fine)],
    );
    for round in 1..=how.rounds {
        eprintln!("virtio: round {round} of {}", how.rounds);
        for (column, (name, medium)) in media.iter().enumerate() {
            machine(how, name, *medium, &mut table)?;
            if how.wants("idle") {
                rest(how, *medium, column, &mut idle)?;
            }
        }
        network(how, cached.path(), &mut nbd)?;
    }
    Ok([table, nbd, idle].into_iter().filter(|table| !table.is_empty()).collect())
}

/// One round of one medium over vhost-user.
fn machine(how: &How<'_>, name: &str, medium: Medium<'_>, table: &mut Table) -> Result<()> {
    let row = |operation: &str, way: &str, depth: usize| {
        format!("{name}, {operation}, {way}, depth {depth}")
    };
    let mut cases = Vec::new();
    for (operation, write) in OPERATIONS {
        if write && matches!(medium, Medium::Null) {
            continue;
        }
        for depth in DEPTHS {
            for (way, waits) in WAYS {
                let row = row(operation, way, depth);
                if how.wants(&row) {
                    cases.push((row, write, depth, waits));
                }
            }
        }
    }
    if cases.is_empty() {
        return Ok(());
    }
    let mut servers = vec![Server::blkback(how.scene, medium)?];
    servers.push(Server::qemu(how.scene, medium, "io_uring")?);
    if matches!(medium, Medium::File { .. }) {
        servers.push(Server::qemu(how.scene, medium, "threads")?);
    }
    for (row, write, depth, waits) in cases {
        if let (Medium::File { path, direct }, Waits::Asleep) = (medium, waits) {
            let mut client = Client::file(path, direct)?;
            client.drive(write, depth, START)?;
            table.add(&row, 0, client.drive(write, depth, how.time())?.rate());
        }
        let mut rates = Vec::new();
        for (number, server) in servers.iter().enumerate() {
            let mut client = Client::machine(&server.socket, waits)?;
            let (rate, cpu) = how.turn(server, |time| client.drive(write, depth, time))?;
            table.add(&row, number.saturating_add(1), rate);
            table.add(&row, number.saturating_add(5), cpu);
            rates.push(rate);
        }
        table.add(&row, 4, to_best(&rates));
    }
    servers.into_iter().try_for_each(|server| server.process.end().map(drop))
}

/// The first one's rate by the best of the others'.
fn to_best(rates: &[f64]) -> f64 {
    let others = rates.iter().skip(1).copied().fold(f64::MIN, f64::max);
    rates.first().copied().unwrap_or(f64::NAN) / others
}

/// One round of servers of NBD, beside blkback.
fn network(how: &How<'_>, path: &Path, table: &mut Table) -> Result<()> {
    let cases: Vec<_> = OPERATIONS
        .iter()
        .flat_map(|(name, write)| {
            [1, 32].map(|depth| (format!("NBD, {name}, depth {depth}"), *write, depth))
        })
        .filter(|(row, ..)| how.wants(row))
        .collect();
    if cases.is_empty() {
        return Ok(());
    }
    let ours = Server::blkback(how.scene, Medium::File { path, direct: false })?;
    let theirs = [Server::qemu_nbd(how.scene, path)?, Server::nbdkit(how.scene, path)?];
    for (row, write, depth) in cases {
        let mut rates = Vec::new();
        let mut add = |number: usize, (rate, cpu): (f64, f64)| {
            table.add(&row, number, rate);
            table.add(&row, number.saturating_add(4), cpu);
            rates.push(rate);
        };
        let mut client = Client::machine(&ours.socket, Waits::Asleep)?;
        add(0, how.turn(&ours, |time| client.drive(write, depth, time))?);
        drop(client);
        for (number, server) in theirs.iter().enumerate() {
            let mut client = nbd::Client::connect(&server.socket)?;
            let seen = how.turn(server, |time| client.drive(write, depth, time))?;
            add(number.saturating_add(1), seen);
        }
        table.add(&row, 3, to_best(&rates));
    }
    ours.process.end()?;
    theirs.into_iter().try_for_each(|server| server.process.end().map(drop))
}

/// What a connection costs that was used and is not any more.
fn rest(how: &How<'_>, medium: Medium<'_>, column: usize, table: &mut Table) -> Result<()> {
    for (name, server) in [
        ("blkback", Server::blkback(how.scene, medium)?),
        ("QEMU", Server::qemu(how.scene, medium, "io_uring")?),
    ] {
        let mut client = Client::machine(&server.socket, Waits::Asleep)?;
        client.drive(false, 1, START)?;
        // Whoever looks for more work has stopped by then.
        std::thread::sleep(START);
        let before = cpu_time(&server.process)?;
        std::thread::sleep(how.time());
        let spent = cpu_time(&server.process)?.saturating_sub(before);
        table.add(name, column, spent.as_secs_f64() * 1e3);
        drop(client);
        server.process.end()?;
    }
    Ok(())
}
