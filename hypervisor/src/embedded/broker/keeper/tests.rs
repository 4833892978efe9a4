//! The book and the machine, kept in step; with real processes.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Keeper, default_total_kib, mem_total_kib};
use crate::DomId;
use crate::domain::{DomainSpec, DomainState};
use crate::embedded::broker::book::{Left, Lifetime};
use crate::embedded::broker::cpu::Shares;

/// A process that ends with the test, whatever the test does to it.
struct Victim(Child);

impl Victim {
    fn busy() -> Self {
        Self::run("while :; do :; done")
    }

    fn run(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// The state letter of proc(5).
    fn state(&self) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1[..1].to_owned()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn one(keeper: &mut Keeper, lifetime: Lifetime) -> DomId {
    keeper.create(&DomainSpec::new("one"), lifetime).unwrap()
}

/// With cgroups as this machine has them, and without any.
fn both() -> [Keeper; 2] {
    [Keeper::new(1 << 20, Shares::open()), Keeper::new(1 << 20, Shares::without_groups())]
}

#[test]
fn cpu_time_grows_while_running_and_stands_while_paused() {
    for mut keeper in both() {
        let victim = Victim::busy();
        let id = one(&mut keeper, Lifetime::UntilLeft);
        keeper.enter(id, victim.pid()).unwrap();
        let cpu = |keeper: &mut Keeper| keeper.list()[0].cpu_ns;
        until("CPU time is counted", || cpu(&mut keeper) > 20_000_000);
        keeper.pause(id, true).unwrap();
        assert_eq!(keeper.list()[0].state, DomainState::Paused);
        // Stopping takes effect within moments of being asked for; then nothing is added.
        let mut last = cpu(&mut keeper);
        until("CPU time stands still", || {
            std::thread::sleep(Duration::from_millis(50));
            let now = cpu(&mut keeper);
            std::mem::replace(&mut last, now) == now
        });
        keeper.pause(id, false).unwrap();
        until("CPU time grows again", || cpu(&mut keeper) > last + 20_000_000);
    }
}

#[test]
fn what_left_still_counts_and_goes_home() {
    for mut keeper in both() {
        let victim = Victim::busy();
        let groups = || std::fs::read_to_string(format!("/proc/{}/cgroup", victim.pid())).unwrap();
        let home = groups();
        let id = one(&mut keeper, Lifetime::UntilDestroyed);
        keeper.enter(id, victim.pid()).unwrap();
        until("CPU time is counted", || keeper.list()[0].cpu_ns > 20_000_000);
        let before = keeper.list()[0].cpu_ns;
        assert_eq!(keeper.leave(id, victim.pid()), Left::Stays);
        assert_eq!(groups(), home);
        assert!(keeper.list()[0].cpu_ns >= before);
        assert_eq!(keeper.list()[0].state, DomainState::Paused);
    }
}

#[test]
fn destroying_a_domain_kills_its_processes_even_when_paused() {
    for paused in [false, true] {
        for mut keeper in both() {
            let mut victim = Victim::run("read -r go; sleep 600 & wait");
            let id = one(&mut keeper, Lifetime::UntilLeft);
            keeper.enter(id, victim.pid()).unwrap();
            // What it starts from now on is the domain's, even while that ends.
            victim.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
            keeper.pause(id, paused).unwrap();
            keeper.kill(id);
            keeper.end(id, false).unwrap();
            assert!(!victim.0.wait().unwrap().success());
            assert!(keeper.list().is_empty());
        }
    }
}

#[test]
fn a_domain_that_was_left_takes_no_process_with_it() {
    for mut keeper in both() {
        let (first, late) = (Victim::busy(), Victim::busy());
        let id = one(&mut keeper, Lifetime::UntilLeft);
        keeper.enter(id, first.pid()).unwrap();
        assert_eq!(keeper.leave(id, first.pid()), Left::Ended);
        // As another hypervisor does that lets a process go back to where it came from.
        if let Some(group) = keeper.shares.group(id) {
            std::fs::write(group.join("cgroup.procs"), late.pid().to_string()).unwrap();
        }
        keeper.end(id, false).unwrap();
        for victim in [&first, &late] {
            until("it runs", || victim.state() == "R");
        }
    }
}

#[test]
fn dropping_the_keeper_lets_paused_processes_go_on() {
    for mut keeper in both() {
        let victim = Victim::busy();
        let id = one(&mut keeper, Lifetime::UntilLeft);
        keeper.enter(id, victim.pid()).unwrap();
        keeper.pause(id, true).unwrap();
        drop(keeper);
        until("the process runs", || victim.state() == "R");
    }
}

#[test]
fn a_process_that_enters_a_paused_domain_is_stopped() {
    for mut keeper in both() {
        let victim = Victim::busy();
        let id = one(&mut keeper, Lifetime::UntilLeft);
        keeper.pause(id, true).unwrap();
        keeper.enter(id, victim.pid()).unwrap();
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.pid())).unwrap();
            stat.split(' ').nth(13).unwrap().to_owned()
        };
        let mut last = ticks();
        until("its CPU time stands still", || {
            std::thread::sleep(Duration::from_millis(100));
            let now = ticks();
            std::mem::replace(&mut last, now.clone()) == now
        });
        keeper.pause(id, false).unwrap();
        until("it goes on", || ticks() != last);
    }
}

#[test]
fn the_broker_itself_is_neither_moved_nor_killed() {
    let home = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    for mut keeper in both() {
        let id = one(&mut keeper, Lifetime::UntilLeft);
        keeper.enter(id, i32::try_from(std::process::id()).unwrap()).unwrap();
        keeper.pause(id, true).unwrap();
        keeper.kill(id);
        keeper.end(id, false).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/self/cgroup").unwrap(), home);
    }
}

#[test]
fn a_process_that_is_gone_already_is_no_error() {
    for mut keeper in both() {
        let mut victim = Victim::run(":");
        victim.0.wait().unwrap();
        let id = one(&mut keeper, Lifetime::UntilLeft);
        keeper.enter(id, victim.pid()).unwrap();
        assert_eq!(keeper.leave(id, victim.pid()), Left::Ended);
        keeper.end(id, false).unwrap();
    }
}

#[test]
fn the_default_is_three_quarters_of_the_machine() {
    assert_eq!(mem_total_kib("MemFree: 1 kB\nMemTotal:       24576 kB\n"), Some(24576));
    assert_eq!(mem_total_kib("MemTotal: x kB\n"), None);
    let total = default_total_kib().unwrap();
    assert!(total > 0 && total.is_multiple_of(4));
}
