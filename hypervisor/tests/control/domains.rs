//! Making, listing, stopping, resizing and ending domains.

use std::os::unix::process::ExitStatusExt as _;

use hypervisor::domain::{DomainSpec, DomainState, Domains as _};
use nix::sys::signal::Signal;

use crate::stage::{Stage, until};

#[test]
fn a_domain_waits_paused_for_a_program_until_destroyed() {
    let stage = Stage::new();
    assert_eq!(
        stage.done(&["create", "guest", "--memory", "96M", "--vcpus", "2"]),
        "domain 1 'guest'\n"
    );
    let json = stage.done(&["create", "other", "--cap", "50", "--weight", "512", "--json"]);
    assert_eq!(json.trim(), r#"{"id":2,"name":"other"}"#);
    let list = stage.list();
    assert_eq!(list.len(), 2);
    for (at, field, value) in [
        (0, "name", "guest".into()),
        (0, "id", 1.into()),
        (0, "memory_kib", (96 << 10).into()),
        (0, "target_kib", (96 << 10).into()),
        (0, "vcpus", 2.into()),
        (0, "weight", 256.into()),
        (0, "cap", 0.into()),
        (0, "state", "paused".into()),
        (0, "state_letters", "--p---".into()),
        (0, "cpu_ns", 0.into()),
        (1, "weight", 512.into()),
        (1, "cap", serde_json::Value::from(50)),
    ] {
        assert_eq!(list[at][field], value, "{field} of {list:?}");
    }
    let table = stage.done(&["list"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    stage.done(&["destroy", "guest"]);
    stage.done(&["destroy", "2"]);
    assert!(stage.list().is_empty());
}

#[test]
fn a_program_runs_in_its_domain_and_the_domain_ends_with_it() {
    let stage = Stage::new();
    let script = "echo $DOMKIT_DOMAIN $DOMKIT_RUN; read -r line < \"$DOMKIT_RUN/go\"; exit 7";
    nix::unistd::mkfifo(&stage.folder().join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut program = stage.domain("prog", &[], script);
    assert_eq!(program.line(), format!("1 {}\n", stage.folder().display()));
    assert_eq!(stage.field("prog", "state"), Some("running".into()));
    std::fs::write(stage.folder().join("go"), "go\n").unwrap();
    assert_eq!(program.0.wait().unwrap().code(), Some(7));
    until("the domain ends", || stage.list().is_empty());
}

#[test]
fn what_a_program_leaves_running_keeps_its_domain() {
    let stage = Stage::new();
    let mut program = stage.domain("prog", &[], "sleep 600 & echo $!");
    let sleeper: i32 = program.line().trim().parse().unwrap();
    assert!(program.0.wait().unwrap().success());
    assert_eq!(stage.field("prog", "state"), Some("running".into()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
    until("the domain ends", || stage.list().is_empty());
}

#[test]
fn pausing_stops_a_program_and_unpausing_lets_it_go_on() {
    let stage = Stage::new();
    let _program = stage.domain("busy", &[], "while :; do :; done");
    let cpu = || stage.field("busy", "cpu_ns").and_then(|ns| ns.as_u64()).unwrap_or(0);
    until("it uses CPU time", || cpu() > 30_000_000);
    stage.done(&["pause", "busy"]);
    assert_eq!(stage.field("busy", "state"), Some("paused".into()));
    let mut last = cpu();
    until("it stands still", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = cpu();
        std::mem::replace(&mut last, now) == now
    });
    stage.done(&["unpause", "1"]);
    assert_eq!(stage.field("busy", "state"), Some("running".into()));
    until("it goes on", || cpu() > last + 30_000_000);
}

#[test]
fn a_program_can_be_held_before_its_first_instruction() {
    let stage = Stage::new();
    let mut program = stage.domain("held", &["--paused"], "echo ran");
    until("the domain is there", || stage.field("held", "state") == Some("paused".into()));
    stage.done(&["unpause", "held"]);
    assert_eq!(program.line(), "ran\n");
}

#[test]
fn destroying_kills_even_what_is_paused() {
    for paused in [false, true] {
        let stage = Stage::new();
        let mut program = stage.domain("victim", &[], "trap '' TERM; echo up; while :; do :; done");
        assert_eq!(program.line(), "up\n");
        if paused {
            stage.done(&["pause", "victim"]);
        }
        stage.done(&["destroy", "victim"]);
        assert_eq!(program.0.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert!(stage.list().is_empty());
    }
}

#[test]
fn memory_given_back_can_go_to_another() {
    let stage = Stage::new();
    stage.done(&["create", "large", "--memory", "1000M"]);
    let refused = stage.ask(&["create", "small", "--memory", "100M"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    for part in ["102400 KiB", "1048576 KiB", "24576 KiB"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    stage.done(&["mem-set", "large", "900M"]);
    assert_eq!(stage.field("large", "target_kib"), Some((900 << 10).into()));
    assert_eq!(stage.field("large", "memory_kib"), Some((1000 << 10).into()));
    stage.done(&["create", "small", "--memory", "100M"]);
    assert_eq!(stage.ask(&["mem-set", "large", "1000M"]).status.code(), Some(1));
    stage.done(&["destroy", "small"]);
    stage.done(&["mem-set", "large", "1000M"]);
}

#[test]
fn shares_are_set_one_by_one_and_shown() {
    let stage = Stage::new();
    stage.done(&["create", "one", "--vcpus", "2"]);
    stage.done(&["sched", "one", "--weight", "512"]);
    stage.done(&["sched", "one", "--cap", "150"]);
    assert_eq!(stage.done(&["sched", "one"]), "one: weight 512, cap 150\n");
    assert_eq!(
        stage.done(&["sched", "1", "--json"]).trim(),
        r#"{"cap":150,"id":1,"name":"one","weight":512}"#
    );
}

#[test]
fn more_domains_than_fit_one_answer_are_all_listed() {
    let stage = Stage::new();
    let control = stage.control();
    for number in 0..150 {
        let mut spec = DomainSpec::new(format!("domain-with-quite-a-long-name-number-{number}"));
        spec.memory_kib = 64;
        control.create(&spec).unwrap();
    }
    let all = control.list().unwrap();
    let ids: Vec<u16> = all.iter().map(|info| info.id.get()).collect();
    assert_eq!(ids, (1..=150).collect::<Vec<_>>());
    assert!(all.iter().all(|info| info.state == DomainState::Paused));
    assert_eq!(control.info().unwrap().domains, 150);
}

#[test]
fn the_store_knows_a_domain_as_long_as_it_lives() {
    use hypervisor::store::{Store as _, Transaction};
    let stage = Stage::new();
    let store = hypervisor::xenstore::Client::connect(stage.place().store_socket()).unwrap();
    let read = |path: &str| store.read(Transaction::NONE, path);
    stage.done(&["create", "guest", "--memory", "96M"]);
    assert_eq!(read("/local/domain/1/name").unwrap(), b"guest");
    assert_eq!(read("/local/domain/1/memory/target").unwrap(), b"98304");
    stage.done(&["mem-set", "guest", "65533K"]);
    assert_eq!(read("/local/domain/1/memory/target").unwrap(), b"65536", "in whole pages");
    stage.done(&["destroy", "guest"]);
    assert!(read("/local/domain/1/name").is_err());
}
