//! Hostile guests against the real netback on a bridge: it survives each of them, counts what they did by
//! name, keeps its memory and descriptors, serves the next guest, and another guest on the same bridge
//! is answered all the while.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hypervisor::embedded::Place;
use serde_json::Value;
use testbed::hostile::{self, Case, Stage, net};
use testbed::lan::{BRIDGE, Lan};
use testbed::network::{Namespace, unless_here, v4};
use testbed::scene::{PATIENCE, Process, until};

const NAME: &str = "attacker";

/// The daemon that is attacked, and how it is asked.
struct Daemon<'a> {
    lan: &'a Lan,
    process: Process,
    stage: Stage,
}

impl Daemon<'_> {
    /// How often `name` was counted since the daemon began: as a loss, a fault or a counter.
    fn counted(&self, name: &str) -> Result<u64> {
        let counters = self.lan.ctl(&["counters", "--domain", NAME])?;
        let ever = counters.get("ever").context("no sums")?;
        let list = self.lan.ctl(&["list", "--domain", NAME])?;
        let device = list.get(0).context("no device")?;
        let all = [
            ever.get("lost").and_then(|lost| lost.get(name)),
            ever.get(name),
            device.get("faults").and_then(|faults| faults.get(name)),
            device.get(name),
        ];
        Ok(all.into_iter().flatten().filter_map(Value::as_u64).sum())
    }

    /// Plays `case` until all that it should leave behind is counted.
    fn suffer(&mut self, case: &Case) -> Result<()> {
        let before: Vec<u64> =
            case.counted.iter().map(|name| self.counted(name)).collect::<Result<_>>()?;
        let began = Instant::now();
        loop {
            (case.play)(&self.stage)?;
            let mut missing = Vec::new();
            for (name, before) in case.counted.iter().zip(&before) {
                if self.counted(name)? <= *before {
                    missing.push(*name);
                }
            }
            if missing.is_empty() {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "never counted: {missing:?}");
        }
        ensure!(self.process.runs(), "the daemon is gone:\n{}", self.process.written());
        net::visit(&self.stage).context("the next guest")
    }
}

/// Private memory in KiB and open descriptors, each the least of many looks: what is only there for
/// a moment is no leak.
fn least(process: &Process) -> Result<(u64, usize)> {
    let mut least = (u64::MAX, usize::MAX);
    for _ in 0..20 {
        least.0 = least.0.min(process.private_kib()?);
        least.1 = least.1.min(process.descriptors()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(least)
}

/// Asks the host whether it is there until told to stop, counting how often it was.
fn ask(from: &Namespace, over: &AtomicBool, turns: &AtomicU64) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        from.until_answered(&v4(1), 1400)?;
        turns.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn play_all(attacked: &mut Daemon<'_>, turns: &AtomicU64) -> Result<()> {
    for case in net::all() {
        let before = turns.load(Ordering::Relaxed);
        eprintln!("{}", case.name);
        attacked.suffer(case).with_context(|| format!("case {}", case.name))?;
        let what = format!("the other guest is answered beside {}", case.name);
        until(&what, || Ok(turns.load(Ordering::Relaxed) > before))?;
    }
    Ok(())
}

fn siege(lan: &Lan) -> Result<()> {
    let process = lan.netback(&["--bridge", BRIDGE, "--domain", NAME])?;
    let stage = Stage { place: Place::at(lan.scene.place()), name: NAME.to_owned(), kind: "vif" };
    let mut attacked = Daemon { lan, process, stage };
    let other = &lan.guests.first().context("a guest")?.namespace;
    let (over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let user = scope.spawn(|| ask(other, &over, &turns));
        let mut played = || -> Result<()> {
            // The first time around buffers, threads and tables grow to their size.
            play_all(&mut attacked, &turns)?;
            let early = least(&attacked.process)?;
            play_all(&mut attacked, &turns)?;
            let late = least(&attacked.process)?;
            ensure!(late.0 <= early.0 + 8192, "netback had {early:?} and has {late:?} KiB");
            ensure!(late.1 <= early.1 + 4, "netback had {early:?} and has {late:?} descriptors");
            Ok(())
        };
        let played = played();
        over.store(true, Ordering::Relaxed);
        let used = user.join().expect("the other guest panicked");
        match (played, used.context("the other guest")) {
            (Err(one), Err(other)) => Err(one.context(format!("{other:#}"))),
            (played, used) => played.and(used),
        }
    })?;
    // What they caused is not all in its log.
    let said = attacked.process.end()?;
    ensure!(said.lines().count() < 2000, "{} lines of log", said.lines().count());
    Ok(())
}

#[test]
fn hostile_frontends_are_survived_and_counted_and_harm_nobody_else() {
    if !unless_here("hostile_frontends_are_survived_and_counted_and_harm_nobody_else") {
        return;
    }
    let mut lan = Lan::new("net-hostile").unwrap();
    lan.guest(&[], &[]).unwrap();
    if let Err(error) = siege(&lan) {
        lan.scene.print_logs();
        panic!("{error:#}");
    }
    lan.end().unwrap();
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let names: BTreeSet<&str> = hostile::all().chain(net::all()).map(|case| case.name).collect();
    assert_eq!(names.len(), hostile::all().count() + net::all().count());
    assert!(net::all().all(|case| case.name.starts_with("net-") && !case.counted.is_empty()));
}
