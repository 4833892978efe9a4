//! Hostile guests against the real netback on a bridge: it survives each of them, counts what they did by
//! name, keeps its memory and descriptors, serves the next guest, and another guest on the same bridge
//! is answered all the while.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use hypervisor::embedded::Place;
use serde_json::Value;
use testbed::hostile::siege::{self, Attacked, Held};
use testbed::hostile::{self, Stage, net};
use testbed::lan::{BRIDGE, Lan};
use testbed::network::{Namespace, unless_here, v4};
use testbed::scene::Process;

const NAME: &str = "attacker";

/// The daemon that is attacked, and how it is asked.
struct Daemon<'a> {
    lan: &'a Lan,
    process: Process,
    stage: Stage,
}

impl Attacked for Daemon<'_> {
    fn says(&self) -> Result<[Value; 2]> {
        let counters = self.lan.ctl(&["counters", "--domain", NAME])?;
        let list = self.lan.ctl(&["list", "--domain", NAME])?;
        Ok([
            counters.get("ever").context("no sums")?.clone(),
            list.get(0).context("no device")?.clone(),
        ])
    }

    fn stage(&self) -> &Stage {
        &self.stage
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn visit(&self) -> Result<()> {
        net::visit(&self.stage)
    }
}

/// Asks the host whether it is there until told to stop, counting how often it was.
fn ask(from: &Namespace, over: &AtomicBool, turns: &AtomicU64) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        from.until_answered(&v4(1), 1400)?;
        turns.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn besiege(lan: &Lan) -> Result<()> {
    let process = lan.netback(&["--bridge", BRIDGE, "--domain", NAME])?;
    let stage = Stage { place: Place::at(lan.scene.place()), name: NAME.to_owned(), kind: "vif" };
    let mut attacked = Daemon { lan, process, stage };
    let other = &lan.guests.first().context("a guest")?.namespace;
    let play = |turns: &AtomicU64| {
        // The first time around buffers, threads and tables grow to their size.
        attacked.suffer_all(net::all(), turns)?;
        let early = Held::by(&attacked.process)?;
        attacked.suffer_all(net::all(), turns)?;
        early.demand("netback", Held::by(&attacked.process)?, 8192)
    };
    siege::beside(|over, turns| ask(other, over, turns), play)?;
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
    if let Err(error) = besiege(&lan) {
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
