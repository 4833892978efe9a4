//! Domains' cgroups, where this machine lets the tests make any.

use std::path::{Path, PathBuf};

use crate::stage::{Running, Stage, until};

/// The cgroup v2 group of a process.
fn group_of(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

/// Where that group's files are.
fn folder_of(group: &str) -> PathBuf {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let folders = roots.map(|root| root.join(group.trim_start_matches('/')));
    folders.into_iter().find(|folder| folder.join("cgroup.procs").exists()).unwrap()
}

/// Says that a part of a test is skipped, past the harness, which keeps to itself what a test that
/// passes has said. Where nothing may be skipped (`DOMKIT_NO_SKIP=1`), it fails.
fn skipped(why: &str) {
    let allowed = std::env::var_os("DOMKIT_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "must not be skipped here (DOMKIT_NO_SKIP=1): {why}");
    let line = format!("SKIPPED control groups: {}\n", why.trim().replace('\n', "; "));
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

/// A domain that has a group of its own; or `None`, loudly, where there are no groups.
fn with_group(stage: &Stage, name: &str, options: &[&str]) -> Option<(Running, String)> {
    let mut program = stage.domain(name, options, "echo up; while :; do :; done");
    assert_eq!(program.line(), "up\n");
    let group = group_of(program.pid());
    if group.contains("/domkit-") {
        return Some((program, group));
    }
    let info = stage.done(&["info"]);
    assert!(info.contains("UNENFORCED"), "no group, and nothing is said of it: {info}");
    skipped(&format!("this process may not make cgroup v2 groups: {info}"));
    None
}

#[test]
fn each_domain_has_a_group_that_goes_with_it() {
    let stage = Stage::new();
    let Some((mut program, group)) = with_group(&stage, "one", &[]) else { return };
    assert!(group.ends_with("/dom1"), "{group}");
    let Some((_other, second)) = with_group(&stage, "two", &[]) else { return };
    assert!(second.ends_with("/dom2"), "{second}");
    let folder = folder_of(&group);
    stage.done(&["destroy", "one"]);
    program.0.wait().unwrap();
    until("the group is removed", || {
        stage.list();
        !folder.exists()
    });
    let top = folder.parent().unwrap().to_owned();
    drop(stage);
    assert!(!top.exists() || folder_of(&second).exists());
}

#[test]
fn a_process_is_put_back_when_the_hypervisor_ends() {
    let mut stage = Stage::new();
    let before = group_of(i32::try_from(std::process::id()).unwrap());
    let Some((program, group)) = with_group(&stage, "one", &[]) else { return };
    let folder = folder_of(&group);
    assert!(stage.end().success());
    assert_eq!(group_of(program.pid()), before);
    assert!(!folder.exists());
    assert!(!folder.parent().unwrap().exists());
}

#[test]
fn weight_cap_and_memory_are_written_where_the_controllers_are() {
    let stage = Stage::new();
    let options = ["--cap", "50", "--weight", "512", "--memory", "64M"];
    let Some((_program, group)) = with_group(&stage, "one", &options) else { return };
    let folder = folder_of(&group);
    let file = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap().trim().to_owned();
    let unenforced = stage.control().info().unwrap().unenforced;
    let is_missing = |what: &str| unenforced.iter().any(|item| item.starts_with(what));
    if is_missing("CPU weight and cap") {
        skipped(&format!("CPU shares: {unenforced:?}"));
        assert!(!folder.join("cpu.max").exists());
    } else {
        assert_eq!((file("cpu.weight"), file("cpu.max")), ("200".into(), "50000 100000".into()));
        stage.done(&["sched", "one", "--cap", "25", "--weight", "128"]);
        assert_eq!((file("cpu.weight"), file("cpu.max")), ("50".into(), "25000 100000".into()));
    }
    if is_missing("memory limits") {
        skipped(&format!("memory limits: {unenforced:?}"));
        assert!(!folder.join("memory.max").exists());
    } else {
        assert_eq!(file("memory.max"), (128_u64 << 20).to_string());
        stage.done(&["mem-set", "one", "32M"]);
        assert_eq!(file("memory.max"), (96_u64 << 20).to_string());
    }
}
