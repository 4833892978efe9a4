//! `blkfront bench`: how many requests a second, and how long they take.

mod plan;
mod report;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use blkfront::arena::Arena;
use hypervisor::host::Domain;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{Args, Bench, Mode};
use crate::attach::{Joined, attach};
use crate::bench::plan::Plan;
use crate::bench::report::Report;
use crate::bench::worker::{Outcome, Worker};

/// What all workers have done so far, for the progress line.
#[derive(Default)]
pub(crate) struct Progress {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// Whether what is asked for makes sense.
pub(crate) fn check(options: &Bench) -> anyhow::Result<()> {
    let block = options.bs.0;
    if block == 0 || block > 1 << 30 {
        bail!("--bs {block}: must be from one sector to 1G");
    }
    if options.verify && matches!(options.rw, Mode::Read | Mode::Randread) {
        bail!(
            "--verify: needs a mode that writes (randrw, randwrite, write): it checks what it wrote"
        );
    }
    Ok(())
}

/// Bytes of granted memory that are needed besides what the disk itself needs.
pub(crate) fn lent(args: &Args, options: &Bench) -> u64 {
    let (block, depth) = (options.bs.0, u64::from(options.depth));
    let memory = block.saturating_mul(depth).saturating_mul(args.queues.into());
    if options.zero_copy { memory } else { 0 }
}

pub(crate) fn run<D: Domain>(
    args: &Args,
    options: &Bench,
    joined: Joined<D>,
) -> anyhow::Result<()> {
    let block = options.bs.0;
    let attached = attach(args, joined, options.depth)?;
    let info = attached.info;
    if options.rw.writes() && info.read_only {
        bail!("disk {} is read-only: use --rw read or randread", attached.name);
    }
    if !block.is_multiple_of(info.sector_size.into()) {
        bail!("--bs {block}: is no multiple of the disk's sectors of {} bytes", info.sector_size);
    }
    let range = options.range.map_or(info.size, |range| range.0.min(info.size));
    let queues = attached.disk.status().queues;
    let each = range.checked_div(queues as u64).unwrap_or(0);
    let blocks = each.checked_div(block).unwrap_or(0);
    if blocks == 0 {
        bail!(
            "the disk, or --range, has {range} bytes: too little for {queues} queues and --bs {block}"
        );
    }
    let progress = Arc::new(Progress::default());
    let began = Instant::now();
    let until = began.checked_add(options.seconds).context("--seconds is too long")?;
    let mut workers = Vec::new();
    for number in 0..queues {
        let queue = attached.disk.queue().context("the disk has fewer queues than it said")?;
        let arena = if options.zero_copy {
            let bytes = usize::try_from(block.saturating_mul(options.depth.into()))?;
            Some(attached.disk.arena(bytes.div_ceil(hypervisor::PAGE_SIZE))?)
        } else {
            None
        };
        // Each queue has its own part of the disk, so that no two write to the same place.
        let first = blocks.saturating_mul(number as u64);
        let plan = Plan::new(options.rw, block, first, blocks, options.verify, number as u64);
        let worker = Worker::new(queue, plan, options, arena, until, attached.stop.clone());
        let progress = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name(format!("bench-{number}"))
            .spawn(move || worker.run(&progress))
            .context("start a thread")?;
        workers.push(thread);
    }
    show(&progress, options, began, || workers.iter().all(std::thread::JoinHandle::is_finished));
    let mut total = Outcome::new()?;
    let mut arenas: Vec<Arena<_>> = Vec::new();
    let mut failed = None;
    for worker in workers {
        match worker.join() {
            Ok(Ok((outcome, arena))) => {
                total.add(&outcome)?;
                arenas.extend(arena);
            }
            Ok(Err(error)) => failed = Some(error),
            Err(_) => bail!("a worker panicked"),
        }
    }
    let counters = attached.disk.counters();
    let interrupted = attached.disk.status().connections > 1;
    let domain = attached.domain.clone();
    attached.disk.close();
    for arena in arenas {
        // What a backend still holds goes when this process does.
        let _ = arena.close(&domain);
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let report = Report::new(options, queues, &total, &counters, interrupted);
    report.print(options.json)?;
    if total.errors > 0 {
        bail!("{} requests failed", total.errors);
    }
    Ok(())
}

/// Shows how it goes until everybody is done.
fn show(progress: &Progress, options: &Bench, began: Instant, finished: impl Fn() -> bool) {
    let line = if options.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        line.set_style(style);
    }
    let (mut requests, mut bytes, mut at) = (0_u64, 0_u64, began);
    let mut next = began;
    while !finished() {
        std::thread::sleep(Duration::from_millis(20));
        let now = Instant::now();
        if now < next {
            continue;
        }
        next = now.checked_add(Duration::from_millis(500)).unwrap_or(now);
        let seconds = now.saturating_duration_since(at).as_secs_f64().max(1e-3);
        let (r, b) =
            (progress.requests.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed));
        line.set_message(format!(
            "{:.1} of {:.0} s: {:.0} requests/s, {:.1} MiB/s",
            now.saturating_duration_since(began).as_secs_f64(),
            options.seconds.as_secs_f64(),
            r.saturating_sub(requests) as f64 / seconds,
            b.saturating_sub(bytes) as f64 / seconds / (1024.0 * 1024.0),
        ));
        line.tick();
        (requests, bytes, at) = (r, b, now);
    }
    line.finish_and_clear();
}
