//! Starting and ending the hypervisor itself.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stage::{PATIENCE, Running, Stage, tool, until};

#[test]
fn it_says_where_it_is_and_ends_cleanly_when_told() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut stage = Stage::new();
        let folder = stage.folder().display().to_string();
        assert_eq!(
            stage.ready,
            format!("ready: embedded hypervisor in {folder}; store at {folder}/xenstored.sock\n")
        );
        assert!(stage.list().is_empty());
        stage.hypervisor.signal(signal);
        assert!(stage.hypervisor.0.wait().unwrap().success());
        assert!(!stage.folder().join("control.sock").exists());
        assert!(!stage.folder().join("xenstored.sock").exists());
    }
}

#[test]
fn it_says_so_to_programs() {
    let stage = Stage::with(&["--memory", "1G", "--json"]);
    let ready: Value = serde_json::from_str(&stage.ready).unwrap();
    assert_eq!(ready["pid"], stage.hypervisor.pid());
    assert_eq!(ready["place"], stage.folder().to_str().unwrap());
    let info: Value = serde_json::from_str(&stage.done(&["info", "--json"])).unwrap();
    assert_eq!(info["pid"], ready["pid"]);
    assert_eq!(info["store"], ready["store"]);
    assert_eq!(info["unenforced"], ready["unenforced"]);
    assert_eq!((&info["total_kib"], &info["free_kib"]), (&(1 << 20).into(), &(1 << 20).into()));
    let text = stage.done(&["info"]);
    assert!(text.contains("1 GiB, of which 1 GiB are free"), "{text}");
    assert_eq!(
        text.matches("UNENFORCED").count(),
        info["unenforced"].as_array().unwrap().len(),
        "{text}"
    );
}

#[test]
fn it_tells_the_service_manager() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = tool(&folder.path().join("run"));
    command.env("NOTIFY_SOCKET", &path).arg("run").stdout(Stdio::null()).stderr(Stdio::null());
    let mut hypervisor = Running::start(&mut command);
    let mut buffer = [0; 256];
    let mut hear = || {
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(hear().trim(), "READY=1");
    hypervisor.signal(Signal::SIGTERM);
    assert_eq!(hear().trim(), "STOPPING=1");
    assert!(hypervisor.0.wait().unwrap().success());
}

#[test]
fn two_in_one_folder_are_refused() {
    let stage = Stage::new();
    for options in [&["run"][..], &["run", "--detach"]] {
        let output = stage.ask(options);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("another hypervisor runs in"), "{said}");
    }
    assert!(stage.list().is_empty());
}

#[test]
fn one_that_was_killed_leaves_nothing_in_the_way() {
    let mut stage = Stage::new();
    let folder = stage.folder().to_owned();
    stage.hypervisor.signal(Signal::SIGKILL);
    stage.hypervisor.0.wait().unwrap();
    let output = stage.ask(&["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no hypervisor runs in"));
    let mut again = tool(&folder);
    again.arg("run").stdout(Stdio::piped()).stderr(Stdio::null());
    let mut again = Running::start(&mut again);
    assert!(again.line().starts_with("ready: "));
    again.signal(Signal::SIGTERM);
    assert!(again.0.wait().unwrap().success());
}

#[test]
fn when_asked_to_it_ends_with_its_last_domain() {
    let mut stage = Stage::with(&["--memory", "1G", "--until-empty"]);
    stage.done(&["create", "one"]);
    stage.done(&["create", "two"]);
    stage.done(&["destroy", "one"]);
    assert_eq!(stage.list().len(), 1);
    stage.done(&["destroy", "2"]);
    assert!(stage.hypervisor.0.wait().unwrap().success());
}

#[test]
fn what_was_paused_goes_on_when_the_hypervisor_ends() {
    let mut stage = Stage::new();
    let mut program = stage.domain("held", &["--paused"], "echo here");
    until("the domain is there", || stage.field("held", "state") == Some("paused".into()));
    assert!(stage.end().success());
    // Frozen on its way in, it goes on and finds that its hypervisor has gone, or just ran.
    program.0.wait().unwrap();
}

#[test]
fn a_detached_one_logs_to_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("run");
    let output =
        tool(&place).args(["run", "--detach", "--memory", "64M", "--json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let ready: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = i32::try_from(ready["pid"].as_i64().unwrap()).unwrap();
    assert!(place.join("hypervisor.log").exists());
    let info = tool(&place).args(["info", "--json"]).output().unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["total_kib"], 64 << 10);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    until("it has ended", || !place.join("control.sock").exists());
}
