//! Hostile guests against the real daemon: it survives each of them, counts what they did by name,
//! keeps its memory and descriptors, serves the next guest, and the disk of another daemon's guest
//! is served all the while.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use blkback::control::Request;
use hypervisor::daemon::control::Client;
use hypervisor::embedded::Place;
use serde_json::Value;
use testbed::hostile::siege::{self, Attacked, Held};
use testbed::hostile::{self, Stage, honest};
use testbed::scene::{Process, Scene};

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
}

impl Attacked for Daemon {
    fn says(&self) -> Result<[Value; 2]> {
        let counters = self.ask(&Request::Counters)?;
        let ever = counters.get("ever").context("no sums")?;
        Ok([ever.clone(), self.ask(&Request::List)?])
    }

    fn stage(&self) -> &Stage {
        &self.stage
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn visit(&self) -> Result<()> {
        honest::visit(&self.stage, PAGES)
    }
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

fn besiege(scene: &Scene) -> Result<()> {
    let hypervisor = scene.hypervisor()?;
    let mut attacked = Daemon::start(scene, "attacker")?;
    let other = Daemon::start(scene, "other")?;
    let play = |turns: &AtomicU64| {
        // The first time around caches, threads and tables grow to their size.
        attacked.suffer_all(hostile::all(), turns)?;
        let early = [Held::by(&attacked.process)?, Held::by(&hypervisor)?];
        for _ in 0..2 {
            attacked.suffer_all(hostile::all(), turns)?;
        }
        let late = [Held::by(&attacked.process)?, Held::by(&hypervisor)?];
        early[0].demand("blkback", late[0], 4096)?;
        early[1].demand("hypervisor", late[1], 4096)
    };
    siege::beside(|over, turns| use_disk(&other.stage, over, turns), play)?;
    attacked.process.end()?;
    other.process.end()?;
    hypervisor.end()?;
    Ok(())
}

#[test]
fn hostile_guests_are_survived_and_counted_and_harm_nobody_else() {
    let scene = Scene::new("hostile").unwrap();
    if let Err(error) = besiege(&scene) {
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
