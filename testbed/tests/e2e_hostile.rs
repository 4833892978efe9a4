//! Hostile guests against the real daemon: it survives each of them, counts what they did by name,
//! keeps its memory and descriptors, serves the next guest, and the disk of another daemon's guest
//! is served all the while.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blkback::control::Request;
use hypervisor::daemon::control::Client;
use hypervisor::embedded::Place;
use serde_json::Value;
use testbed::hostile::{self, Case, Stage, honest};
use testbed::scene::{PATIENCE, Process, Scene, until};

/// Pages that honest guests use of their disks.
const PAGES: u64 = 16;

/// A daemon that serves an image of its own to the guest `name`.
struct Daemon {
    process: Process,
    control: PathBuf,
    stage: Stage,
}

impl Daemon {
    fn start(scene: &Scene, name: &str) -> Result<Self> {
        let at = |file: String| scene.folder().join(file).display().to_string();
        let (image, control) = (at(format!("{name}.img")), at(format!("{name}.sock")));
        let mut process = scene.start(
            "blkback",
            "blkback",
            ["--image", &image, "--size", "16M", "--queues", "2", "--domain", name]
                .into_iter()
                .chain(["--control", &control]),
        )?;
        process.line_with("ready")?;
        let stage = Stage { place: Place::at(scene.place()), name: name.to_owned(), kind: "vbd" };
        Ok(Self { process, control: control.into(), stage })
    }

    fn ask(&self, request: &Request) -> Result<Value> {
        Client::connect("blkback", Path::new(&self.control))?
            .ask(request)?
            .map_err(anyhow::Error::msg)
    }

    /// How often `name` was counted since the daemon began: as a reason, a fault or a counter.
    fn counted(&self, name: &str) -> Result<u64> {
        let counters = self.ask(&Request::Counters)?;
        let ever = counters.get("ever").context("no sums")?;
        let device = self.ask(&Request::List)?;
        let all = [
            ever.get("refused").and_then(|refused| refused.get(name)),
            ever.get(name),
            device.get("faults").and_then(|faults| faults.get(name)),
        ];
        Ok(all.into_iter().flatten().filter_map(Value::as_u64).sum())
    }

    /// Plays `case` until all that it should leave behind is counted: what a race brings about is
    /// not the same in every round.
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
        honest::visit(&self.stage, PAGES).context("the next guest")
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

/// Uses a disk until told to stop, counting how often all of it was checked.
fn use_disk(stage: &Stage, over: &AtomicBool, turns: &AtomicU64) -> Result<()> {
    let guest = stage.join()?;
    let mut honest = honest::Honest::new(guest.connect(0)?, PAGES)?;
    while !over.load(Ordering::Relaxed) {
        honest.check()?;
        turns.fetch_add(1, Ordering::Relaxed);
    }
    honest.close()
}

/// Plays every case once. The other guest gets through its disk at least once meanwhile, or soon
/// after where a case was short.
fn play_all(attacked: &mut Daemon, turns: &AtomicU64) -> Result<()> {
    for case in hostile::all() {
        let before = turns.load(Ordering::Relaxed);
        eprintln!("{}", case.name);
        attacked.suffer(case).with_context(|| format!("case {}", case.name))?;
        let what = format!("the other guest's disk is served beside {}", case.name);
        until(&what, || Ok(turns.load(Ordering::Relaxed) > before))?;
    }
    Ok(())
}

fn siege(scene: &Scene) -> Result<()> {
    let hypervisor = scene.hypervisor()?;
    let mut attacked = Daemon::start(scene, "attacker")?;
    let other = Daemon::start(scene, "other")?;
    let (over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let user = scope.spawn(|| use_disk(&other.stage, &over, &turns));
        let mut played = || -> Result<()> {
            // The first time around caches, threads and tables grow to their size.
            play_all(&mut attacked, &turns)?;
            let early = [least(&attacked.process)?, least(&hypervisor)?];
            for _ in 0..2 {
                play_all(&mut attacked, &turns)?;
            }
            let late = [least(&attacked.process)?, least(&hypervisor)?];
            for (name, early, late) in
                [("blkback", early[0], late[0]), ("hypervisor", early[1], late[1])]
            {
                ensure!(late.0 <= early.0 + 4096, "{name} had {early:?} and has {late:?} KiB");
                ensure!(late.1 <= early.1 + 4, "{name} had {early:?} and has {late:?} descriptors");
            }
            Ok(())
        };
        let played = played();
        over.store(true, Ordering::Relaxed);
        let used = user.join().expect("the other guest panicked");
        // Where both went wrong, the other guest's end says whose fault it was.
        match (played, used.context("the other guest")) {
            (Err(one), Err(other)) => Err(one.context(format!("{other:#}"))),
            (played, used) => played.and(used),
        }
    })?;
    attacked.process.end()?;
    other.process.end()?;
    hypervisor.end()?;
    Ok(())
}

#[test]
fn hostile_guests_are_survived_and_counted_and_harm_nobody_else() {
    let scene = Scene::new("hostile").unwrap();
    if let Err(error) = siege(&scene) {
        scene.print_logs();
        panic!("{error:#}");
    }
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let names: BTreeSet<&str> = hostile::all().map(|case| case.name).collect();
    assert_eq!(names.len(), hostile::all().count());
    let scene = Scene::new("hostile-list").unwrap();
    let listed = scene.succeed("testbed", "hostile", ["list"]).unwrap();
    for name in names {
        assert!(listed.contains(name), "{name} is not listed:\n{listed}");
    }
    let unknown = scene.run("testbed", "hostile", ["nonesuch"]).unwrap();
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("case 'nonesuch'"));
}
