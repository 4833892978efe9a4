//! What is printed at the end.

use blkfront::queue::Counters;
use clap::ValueEnum as _;
use hypervisor::size::Size;
use serde::Serialize;

use crate::args::Bench;
use crate::bench::worker::Outcome;

/// The measurement. Times are in microseconds.
#[derive(Serialize)]
pub(crate) struct Report {
    rw: String,
    bs: u64,
    depth: u32,
    queues: usize,
    zero_copy: bool,
    seconds: f64,
    requests: u64,
    iops: f64,
    bytes_per_second: f64,
    latency_us: Latency,
    errors: u64,
    verified: Option<u64>,
    /// Notifications that this end sent.
    notifications: u64,
    /// Whether the backend went away and came back meanwhile.
    interrupted: bool,
    /// Whether it was ended early.
    stopped: bool,
}

#[derive(Serialize)]
struct Latency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Report {
    pub(crate) fn new(
        options: &Bench,
        queues: usize,
        outcome: &Outcome,
        counters: &Counters,
        interrupted: bool,
    ) -> Self {
        let seconds = outcome.took.as_secs_f64().max(1e-9);
        let at = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1000.0;
        let rw =
            options.rw.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        Self {
            rw,
            bs: options.bs.0,
            depth: options.depth,
            queues,
            zero_copy: options.zero_copy,
            seconds,
            requests: outcome.requests,
            iops: outcome.requests as f64 / seconds,
            bytes_per_second: outcome.bytes as f64 / seconds,
            latency_us: Latency {
                min: outcome.latency.min() as f64 / 1000.0,
                mean: outcome.latency.mean() / 1000.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: outcome.latency.max() as f64 / 1000.0,
            },
            errors: outcome.errors,
            verified: options.verify.then_some(outcome.verified),
            notifications: counters.notified,
            interrupted,
            stopped: outcome.stopped,
        }
    }

    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        let latency = &self.latency_us;
        println!(
            "{}, {} each, {} at a time in {} queue(s), {:.1} s{}",
            self.rw,
            Size(self.bs),
            self.depth,
            self.queues,
            self.seconds,
            if self.stopped { ", ended early" } else { "" }
        );
        println!("  requests/s  {:>12.0}", self.iops);
        println!("  MiB/s       {:>12.1}", self.bytes_per_second / (1024.0 * 1024.0));
        println!("  latency, microseconds");
        println!(
            "     min {:>9.1}   mean {:>9.1}   max   {:>9.1}",
            latency.min, latency.mean, latency.max
        );
        println!(
            "     p50 {:>9.1}   p90  {:>9.1}   p99   {:>9.1}   p99.9 {:>9.1}",
            latency.p50, latency.p90, latency.p99, latency.p99_9
        );
        if let Some(verified) = self.verified {
            println!("  verified    {verified:>12} blocks, all as written");
        }
        if self.interrupted {
            println!("  the backend went away and came back meanwhile");
        }
        if self.errors > 0 {
            println!("  errors      {:>12}", self.errors);
        }
        Ok(())
    }
}
