//! `--stats`: a line each second.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use blkback::device::Disks;
use blkback::stats::Snapshot;
use serde::Serialize;

const PERIOD: Duration = Duration::from_secs(1);

/// Prints until dropped.
pub(crate) struct Printer {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
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

impl Printer {
    pub(crate) fn start(disks: Arc<Disks>, json: bool) -> Result<Self> {
        let (end, ended) = channel::<()>();
        let print = move || {
            let terminal = std::io::stdout().is_terminal() && !json;
            let (mut before, mut at) = (disks.total(), Instant::now());
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let (now, moment) = (disks.total(), Instant::now());
                let line = Line::between(&before, &now, moment.duration_since(at));
                if line.show(terminal, json).is_err() {
                    // Nobody reads it any more.
                    return;
                }
                (before, at) = (now, moment);
            }
            if terminal {
                println!();
            }
        };
        let thread = thread::Builder::new().name("stats".into()).spawn(print);
        Ok(Self { end: Some(end), thread: Some(thread.context("start the stats' thread")?) })
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A thread that is no more printed all it had.
            let _ = thread.join();
        }
    }
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

    fn show(&self, terminal: bool, json: bool) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            serde_json::to_writer(&mut out, &Tagged { stats: self })?;
            writeln!(out)?;
        } else {
            // An upper bound, and the histogram's first ones are below a microsecond.
            let us =
                |value: Option<f64>| value.map_or("-".into(), |us| format!("<{:.0}", us.ceil()));
            // On a terminal each line takes the place of the one before.
            let (begin, end) = if terminal { ("\r\x1b[K", "") } else { ("", "\n") };
            write!(
                out,
                "{begin}{:>9.0} IOPS ({:.0} r, {:.0} w)  {:>7.1} MB/s r  {:>7.1} MB/s w  \
                 p50 {} us  p99 {} us  depth {}  errors {}{end}",
                self.iops,
                self.reads,
                self.writes,
                self.read_mb,
                self.write_mb,
                us(self.p50_us),
                us(self.p99_us),
                self.depth,
                self.errors
            )?;
        }
        out.flush()
    }
}

#[derive(Serialize)]
struct Tagged<'a> {
    stats: &'a Line,
}
