//! What was measured, as a table and as JSON.

use std::fmt;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::network::Network;

/// One measurement: 4 KiB at random places.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Case {
    /// Writes, not reads.
    pub(crate) write: bool,
    /// Requests under way at a time.
    pub(crate) depth: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.write { "writes" } else { "reads" };
        write!(f, "4 KiB random {what}, {} at a time", self.depth)
    }
}

/// Requests a second and how long they took, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    iops: f64,
    latency_us: Latency,
    #[serde(default)]
    errors: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
    p99_9: f64,
}

impl Measured {
    /// From what `blkfront bench --json` printed.
    pub(crate) fn from_bench(text: &str) -> Result<Self> {
        let measured: Self =
            serde_json::from_str(text).with_context(|| format!("blkfront bench said: {text}"))?;
        if measured.errors != 0 {
            bail!("{} requests failed", measured.errors);
        }
        Ok(measured)
    }

    /// From latencies in nanoseconds, gathered in `seconds`.
    pub(crate) fn from_latencies(latencies: &Histogram<u64>, seconds: f64) -> Self {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            iops: latencies.len() as f64 / seconds,
            latency_us: Latency { p50: at(0.5), p99: at(0.99), p99_9: at(0.999) },
            errors: 0,
        }
    }

    /// Requests a second, for people.
    pub(crate) fn iops(&self) -> String {
        match self.iops {
            many if many >= 10e6 => format!("{:.1} M/s", many / 1e6),
            many if many >= 1e6 => format!("{:.2} M/s", many / 1e6),
            some if some >= 1e4 => format!("{:.0} k/s", some / 1e3),
            few => format!("{few:.0} /s"),
        }
    }
}

/// All of it.
#[derive(Serialize)]
pub(crate) struct Report {
    size_mib: u64,
    seconds_each: u64,
    direct: bool,
    cases: Vec<Compared>,
    /// Where there could be one.
    pub(crate) network: Option<Network>,
}

#[derive(Serialize)]
struct Compared {
    #[serde(flatten)]
    case: Case,
    through: Measured,
    raw: Measured,
    ratio: f64,
}

impl Report {
    pub(crate) fn new(size_mib: u64, seconds_each: u64, direct: bool) -> Self {
        Self { size_mib, seconds_each, direct, cases: Vec::new(), network: None }
    }

    pub(crate) fn add(&mut self, case: Case, through: Measured, raw: Measured) {
        let ratio = through.iops / raw.iops.max(1.0);
        self.cases.push(Compared { case, through, raw, ratio });
    }

    pub(crate) fn print(&self) {
        let cache =
            if self.direct { "past the page cache (O_DIRECT)" } else { "through the page cache" };
        println!();
        println!("A guest's disk of {} MiB, {cache}, {} s each:", self.size_mib, self.seconds_each);
        println!();
        println!("  {:34} {:>10} {:>9} {:>9} {:>9}", "", "IOPS", "p50 us", "p99 us", "p99.9 us");
        for compared in &self.cases {
            row(&compared.case.to_string(), &compared.through);
            row("  the file itself, by io_uring", &compared.raw);
            println!("  {:34} {:>9.2} x", "  ratio", compared.ratio);
        }
        if let Some(network) = &self.network {
            network.print();
        }
        println!("{NEXT}");
    }
}

fn row(name: &str, measured: &Measured) {
    let latency = &measured.latency_us;
    println!(
        "  {name:34} {:>10} {:>9.1} {:>9.1} {:>9.1}",
        measured.iops(),
        latency.p50,
        latency.p99,
        latency.p99_9
    );
}

const NEXT: &str = "
The programs are in target/release. To try by hand, each in a terminal of its own:

  target/release/blkback --image disk.img --size 1G --stats     serve an image
  target/release/blkfront info                                  look at it as a guest
  target/release/blkfront bench --rw randrw --depth 32          use it
  target/release/blkfront nbd                                   export it: qemu-img info nbd://127.0.0.1:10809
  target/release/blkback ctl list                               ask the backend
  target/release/netback --bridge br0                           serve an interface (root)
  target/release/netfront tap --netns guest                     have it in a network namespace
  target/release/hypervisor list                                ask the hypervisor

Each explains itself with --help. More in README.md.";
