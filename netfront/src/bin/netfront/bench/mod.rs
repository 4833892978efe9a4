//! `netfront bench`: one thread for each queue, and what they saw together.
//!
//! Packets are Ethernet frames of the type for local experiments (0x88B5), numbered, so that whoever
//! is at the other end can sink them, or send them back as they are.

mod report;
mod worker;

use std::time::Instant;

use anyhow::{anyhow, bail};
use hypervisor::host::Domain;

use crate::args::{Args, Bench, Mode};
use crate::attach::{Joined, attach};
use crate::bench::report::Report;
use crate::bench::worker::{Outcome, Worker};

/// What can be seen without a domain.
pub(crate) fn check(options: &Bench) -> anyhow::Result<()> {
    if options.mode != Mode::Rr && options.depth != 1 {
        bail!("--depth is for --mode rr");
    }
    Ok(())
}

pub(crate) fn run<D: Domain>(
    args: &Args,
    options: &Bench,
    joined: Joined<D>,
) -> anyhow::Result<()> {
    let attached = attach(args, joined)?;
    let interface = &attached.interface;
    let queues = if options.mode == Mode::Rr { 1 } else { interface.status().queues };
    let from = attached.info.mac.unwrap_or([2, 0, 0, 0, 0, 1]);
    let before = interface.counters();
    let until = Instant::now().checked_add(options.seconds);
    let until = until.ok_or_else(|| anyhow!("--seconds is too long"))?;
    let mut workers = Vec::with_capacity(queues);
    for _ in 0..queues {
        let queue = interface.queue().ok_or_else(|| anyhow!("a queue is missing"))?;
        workers.push(Worker::new(queue, options, from, until, attached.stop.clone())?);
    }
    let mut all = Outcome::new()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            workers.into_iter().map(|worker| scope.spawn(move || worker.run())).collect();
        for thread in threads {
            all.add(&thread.join().map_err(|_| anyhow!("a queue's thread panicked"))??)?;
        }
        anyhow::Ok(())
    })?;
    let after = interface.counters();
    let notified = after.notified.saturating_sub(before.notified);
    let status = interface.status();
    let report = Report::new(options, queues, &all, notified, status.connections > 1);
    attached.interface.close();
    if let Some(ending) = status.ending {
        bail!("{ending}");
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
}
