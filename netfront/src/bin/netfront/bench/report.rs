//! What is printed at the end.

use clap::ValueEnum as _;
use serde::Serialize;

use crate::args::{Bench, Mode};
use crate::bench::worker::Outcome;

/// The measurement. Times are in microseconds.
#[derive(Serialize)]
pub(crate) struct Report {
    mode: String,
    size: u32,
    depth: u32,
    queues: usize,
    seconds: f64,
    packets: u64,
    packets_per_second: f64,
    bits_per_second: f64,
    lost: u64,
    /// There and back.
    latency_us: Option<Latency>,
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
        notifications: u64,
        interrupted: bool,
    ) -> Self {
        let seconds = outcome.took.as_secs_f64().max(1e-9);
        let latency = &outcome.latency;
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
        let mode = options.mode.to_possible_value();
        Self {
            mode: mode.map_or_else(String::new, |value| value.get_name().to_owned()),
            size: options.size,
            depth: options.depth,
            queues,
            seconds,
            packets: outcome.packets,
            packets_per_second: outcome.packets as f64 / seconds,
            bits_per_second: outcome.bytes as f64 * 8.0 / seconds,
            lost: outcome.lost,
            latency_us: (options.mode == Mode::Rr).then(|| Latency {
                min: latency.min() as f64 / 1000.0,
                mean: latency.mean() / 1000.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: latency.max() as f64 / 1000.0,
            }),
            notifications,
            interrupted,
            stopped: outcome.stopped,
        }
    }

    pub(crate) fn print(&self) {
        println!(
            "{} {} bytes, {} queue{}, {:.1} s",
            self.mode,
            self.size,
            self.queues,
            if self.queues == 1 { "" } else { "s" },
            self.seconds
        );
        println!("packets        {}", self.packets);
        println!("packets/s      {:.0}", self.packets_per_second);
        println!("Mbit/s         {:.1}", self.bits_per_second / 1e6);
        println!("lost           {}", self.lost);
        if let Some(latency) = &self.latency_us {
            println!(
                "there and back min {:.1}, mean {:.1}, p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1} us",
                latency.min,
                latency.mean,
                latency.p50,
                latency.p90,
                latency.p99,
                latency.p99_9,
                latency.max
            );
        }
        println!("notifications  {}", self.notifications);
        if self.interrupted {
            println!("the backend went away and came back meanwhile");
        }
        if self.stopped {
            println!("ended early");
        }
    }
}
