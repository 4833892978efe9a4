//! What `--stats` says of a second.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use blkback::device::Disks;
use blkback::stats::Snapshot;
use hypervisor::HostError;
use hypervisor::daemon::stats::Printer;
use serde::Serialize;

/// Prints what `disks` do until dropped.
pub(crate) fn print(disks: &Arc<Disks>, json: bool) -> Result<Printer, HostError> {
    let disks = Arc::clone(disks);
    let mut before = disks.total();
    Printer::start(json, move |passed| {
        let now = disks.total();
        let line = Line::between(&before, &now, passed);
        before = now;
        line
    })
}

#[derive(Debug, Serialize)]
struct Line {
    /// Requests a second.
    iops: f64,
    reads: f64,
    writes: f64,
    /// Megabytes (10^6) a second.
    read_mb: f64,
    write_mb: f64,
    /// Microseconds that so much of the requests stayed under.
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Requests under way.
    depth: u64,
    /// Requests answered with an error.
    errors: u64,
}

impl Line {
    fn between(before: &Snapshot, now: &Snapshot, passed: Duration) -> Self {
        let seconds = passed.as_secs_f64().max(1e-9);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let under = |percent| now.latency_ns(before, percent).map(|ns| ns as f64 / 1000.0);
        Self {
            iops: rate(now.requests(), before.requests()),
            reads: rate(now.reads, before.reads),
            writes: rate(now.writes, before.writes),
            read_mb: rate(now.bytes_read, before.bytes_read) / 1e6,
            write_mb: rate(now.bytes_written, before.bytes_written) / 1e6,
            p50_us: under(50),
            p99_us: under(99),
            depth: now.in_flight,
            errors: now.errors(),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An upper bound, and the histogram's first ones are below a microsecond.
        let us = |value: Option<f64>| value.map_or("-".into(), |us| format!("<{:.0}", us.ceil()));
        write!(
            f,
            "{:>9.0} IOPS ({:.0} r, {:.0} w)  {:>7.1} MB/s r  {:>7.1} MB/s w  \
             p50 {} us  p99 {} us  depth {}  errors {}",
            self.iops,
            self.reads,
            self.writes,
            self.read_mb,
            self.write_mb,
            us(self.p50_us),
            us(self.p99_us),
            self.depth,
            self.errors
        )
    }
}
