//! A program finds a hypervisor, or starts one.
//!
//! Domains are joined from within this process, which moves it, and what it starts meanwhile, into
//! their groups: tests that look at groups are elsewhere.

#[path = "../control/stage.rs"]
mod stage;

use std::process::{Command, Stdio};
use std::sync::Barrier;

use hypervisor::DomId;
use hypervisor::domain::{DomainSpec, Domains as _};
use hypervisor::embedded::{Control, Place};
use hypervisor::find::{self, Found};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use stage::{Running, Stage, tool, until};

/// A folder in which a hypervisor may be started, and is ended.
struct Spot {
    place: Place,
    _folder: TempDir,
}

impl Spot {
    fn new() -> Self {
        let folder = TempDir::with_prefix("domkit-").unwrap();
        Self { place: Place::at(folder.path().join("run")), _folder: folder }
    }

    fn is_over(&self) -> bool {
        matches!(self.place.lock(), Ok(Some(_)))
    }
}

impl Drop for Spot {
    fn drop(&mut self) {
        if let Ok(pid) = Control::connect(&self.place).and_then(|control| control.pid()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            until("the hypervisor has ended", || self.is_over());
        }
    }
}

fn small(name: &str) -> DomainSpec {
    let mut spec = DomainSpec::new(name);
    spec.memory_kib = 1024;
    spec
}

#[test]
fn one_that_runs_is_used() {
    let stage = Stage::new();
    assert!(stage.ready.starts_with("ready: "), "{}", stage.ready);
    let found = find::embedded_at(&stage.place()).unwrap();
    assert!(found.how.starts_with("using the embedded hypervisor that runs in"), "{}", found.how);
    assert_eq!(found.info().unwrap().total_kib, 1 << 20);
    let domain = found.join(&small("me")).unwrap();
    assert_eq!(stage.field("me", "id"), Some(domain.id().get().into()));
}

#[test]
fn one_is_started_where_none_runs_and_ends_with_its_last_domain() {
    let spot = Spot::new();
    let found = find::embedded_at(&spot.place).unwrap();
    assert!(found.how.starts_with("started an embedded hypervisor in"), "{}", found.how);
    let again = find::embedded_at(&spot.place).unwrap();
    assert!(again.how.starts_with("using"), "{}", again.how);
    let domain = found.join(&small("first")).unwrap();
    let other = again.join(&small("second")).unwrap();
    drop((found, again, domain));
    let control = Control::connect(&spot.place).unwrap();
    until("one is left", || control.list().unwrap().len() == 1);
    drop((other, control));
    until("the hypervisor has ended", || spot.is_over());
}

#[test]
fn it_waits_for_who_was_told_of_it() {
    let spot = Spot::new();
    let found = find::embedded_at(&spot.place).unwrap();
    drop(find::embedded_at(&spot.place).unwrap().join(&small("brief")).unwrap());
    until("nobody is in", || found.info().unwrap().domains == 0);
    found.join(&small("late")).unwrap();
}

#[test]
fn many_that_start_one_at_the_same_moment_share_it() {
    let spot = Spot::new();
    let start = Barrier::new(6);
    let all: Vec<_> = std::thread::scope(|scope| {
        let looking: Vec<_> = (0..6)
            .map(|number| {
                let (start, place) = (&start, &spot.place);
                scope.spawn(move || {
                    start.wait();
                    let found = find::embedded_at(place).unwrap();
                    let domain = found.join(&small(&format!("domain-{number}"))).unwrap();
                    (found, domain)
                })
            })
            .collect();
        looking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let started = all.iter().filter(|(found, _)| found.how.starts_with("started")).count();
    assert!(started <= 1, "{started} were started");
    for (found, _) in &all {
        assert_eq!(found.info().unwrap().domains, 6);
    }
}

#[test]
fn one_is_started_while_the_last_is_just_ending() {
    let spot = Spot::new();
    for round in 0..10 {
        let found = find::embedded_at(&spot.place).unwrap();
        let domain = found.join(&small(&format!("round-{round}"))).unwrap();
        assert!(domain.id() > DomId::ZERO, "round {round}");
    }
}

#[test]
fn one_that_was_killed_is_replaced() {
    let spot = Spot::new();
    let found = find::embedded_at(&spot.place).unwrap();
    let control = Control::connect(&spot.place).unwrap();
    kill(Pid::from_raw(control.pid().unwrap()), Signal::SIGKILL).unwrap();
    until("it is gone", || control.info().is_err());
    let other = find::embedded_at(&spot.place).unwrap();
    assert!(found.info().is_err());
    other.join(&small("new")).unwrap();
}

#[test]
fn creating_a_domain_starts_a_hypervisor_too() {
    let spot = Spot::new();
    let output = tool(spot.place.folder()).args(["create", "guest"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"domain 1 'guest'\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("started an embedded hypervisor in"), "{said}");
    let ended = tool(spot.place.folder()).args(["destroy", "guest"]).status().unwrap();
    assert!(ended.success());
    until("the hypervisor has ended", || spot.is_over());
}

/// What [`a_program_joins_the_domain_it_was_started_in`] runs.
#[test]
#[ignore = "run by another test, inside a domain"]
fn program_in_a_domain() {
    let Found::Embedded(found) = find::hypervisor().unwrap() else { panic!("on Xen?") };
    let domain = found.join(&small("not-made")).unwrap();
    println!("joined {}", domain.id());
}

#[test]
fn a_program_joins_the_domain_it_was_started_in() {
    let stage = Stage::new();
    stage.done(&["create", "other"]);
    let own = std::env::current_exe().unwrap();
    let args = ["--ignored", "--exact", "--nocapture", "program_in_a_domain"];
    let mut command = tool(stage.folder());
    command.args(["create", "mine", "--memory", "2M", "--"]).arg(&own).args(args);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("joined 2"), "{output:?}");

    // And one that waited for it, which then waits for the next.
    let output = Command::new(&own)
        .args(args)
        .env("DOMKIT_RUN", stage.folder())
        .env("DOMKIT_HYPERVISOR", "embedded")
        .env("DOMKIT_DOMAIN", "1")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("joined 1"), "{output:?}");
    until("only the waiting one is left", || stage.list().len() == 1);
    until("it waits again", || stage.field("other", "state") == Some("paused".into()));
}

#[test]
fn what_a_domain_started_outlives_it_unless_it_is_destroyed() {
    let spot = Spot::new();
    let found = find::embedded_at(&spot.place).unwrap();
    for (destroyed, survives) in [(false, true), (true, false)] {
        let mut command = Command::new("sh");
        command.args(["-c", "read -r line"]).stdin(Stdio::piped());
        let id = found.join(&small("started-first")).unwrap();
        let mut child = Running::start(&mut command);
        let others = Control::connect(&spot.place).unwrap();
        // The broker leaves alone only itself, so this process may not be in what is destroyed.
        let mut program = tool(spot.place.folder());
        program.args(["create", "program", "--", "sh", "-c", "sleep 600 & echo $!; wait"]);
        let mut program = Running::start(program.stdout(Stdio::piped()).stderr(Stdio::null()));
        let sleeper: i32 = program.line().trim().parse().unwrap();
        if destroyed {
            others.destroy(others.find("program").unwrap().id).unwrap();
            program.0.wait().unwrap();
        }
        drop(id);
        until("the domain has ended", || others.find("started-first").is_err());
        assert!(child.0.try_wait().unwrap().is_none(), "the child was ended");
        let is_there = || std::fs::read_to_string(format!("/proc/{sleeper}/stat"));
        if survives {
            assert!(is_there().is_ok());
        } else {
            until("the sleeper has ended", || {
                is_there().map_or(true, |stat| stat.contains(") Z "))
            });
        }
        let _ = kill(Pid::from_raw(sleeper), Signal::SIGKILL);
        // Its name is free again only once the broker has seen it go.
        drop(program);
        until("the program's domain has ended", || others.find("program").is_err());
    }
}
