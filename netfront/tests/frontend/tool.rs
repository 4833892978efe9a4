//! The tool, as people run it, against a backend of ours.

use std::io::Read as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hypervisor::embedded::Control;
use hypervisor::testing::Machine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::backend::{Backend, Features, MAC};
use crate::host::Echo;

fn netfront(machine: &Machine, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_netfront"))
        .args(arguments)
        .env("DOMKIT_RUN", machine.place().folder())
        .env("DOMKIT_HYPERVISOR", "embedded")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool starts")
}

/// Runs the tool with an interface that gives back what it is sent; `during` is called when it has it.
fn with_echo(arguments: &[&str], during: impl FnOnce(&Child)) -> Output {
    let machine = Machine::new();
    let tool = netfront(&machine, arguments);
    let control = Control::connect(machine.place()).unwrap();
    let began = Instant::now();
    let guest = loop {
        if let Ok(found) = control.find("guest") {
            break found.id;
        }
        assert!(began.elapsed() < Duration::from_secs(100), "the tool became no domain");
        std::thread::sleep(Duration::from_millis(5));
    };
    let echo = Echo::start(Backend::new(&machine, "backend", guest, Features::default()));
    during(&tool);
    let output = tool.wait_with_output().unwrap();
    echo.end();
    output
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn info_says_what_there_is() {
    let info = json(&with_echo(&["info", "--json", "--queues", "2"], |_| ()));
    assert_eq!((&info["mac"], &info["mtu"]), (&MAC.into(), &9000.into()));
    assert_eq!((&info["queues"], &info["carrier"]), (&2.into(), &true.into()));
    assert_eq!(info["offer"]["queues"], 4);
    assert_eq!(info["offer"]["gso_tcpv6"], true);
    let output = with_echo(&["info"], |_| ());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(MAC) && text.contains("large TCP packets   IPv4, IPv6"), "{text}");
}

#[test]
fn the_bench_measures_both_ways() {
    for (arguments, depth) in [(&["--depth", "1"], 1), (&["--depth", "16"], 16)] {
        let all =
            [&["bench", "--mode", "rr", "--seconds", "0.3", "--json"], &arguments[..]].concat();
        let report = json(&with_echo(&all, |_| ()));
        assert!(report["packets"].as_u64().unwrap() > 0, "{report}");
        assert_eq!((&report["depth"], &report["size"]), (&depth.into(), &64.into()));
        let latency = &report["latency_us"];
        assert!(latency["p50"].as_f64().unwrap() > 0.0, "{report}");
        assert!(latency["p99"].as_f64() >= latency["p50"].as_f64(), "{report}");
    }
    let all =
        ["bench", "--mode", "tx", "--size", "1514", "--queues", "2", "--seconds", "0.3", "--json"];
    let report = json(&with_echo(&all, |_| ()));
    assert!(report["packets"].as_u64().unwrap() > 0, "{report}");
    assert_eq!((&report["queues"], &report["latency_us"]), (&2.into(), &Value::Null));
}

#[test]
fn a_wait_that_is_over_and_options_that_make_no_sense_are_explained() {
    let machine = Machine::new();
    let output = netfront(&machine, &["info", "--timeout", "0.1"]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no backend gave it"), "{said}");
    for (arguments, words) in [
        (&["bench", "--mode", "tx", "--depth", "3"][..], "--depth is for"),
        (&["bench", "--to", "1:2"], "colons"),
        (&["tap", "--netns", "a", "--pid", "1"], "cannot be used"),
    ] {
        let output = netfront(&machine, arguments).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
}

#[test]
fn help_man_and_completions_are_there() {
    let machine = Machine::new();
    for (arguments, words) in [
        (&["--help"][..], "netfront tap --netns guest"),
        (&["man"], ".TH netfront"),
        (&["completions", "bash"], "_netfront"),
    ] {
        let output = netfront(&machine, arguments).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn a_tap_is_there_until_it_is_stopped() {
    let test = "a_tap_is_there_until_it_is_stopped";
    if !testbed::skip::unless_root(test) {
        return;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        testbed::skip::because(test, "no /dev/net/tun (modprobe tun)");
        return;
    }
    let name = format!("nf{}", std::process::id());
    let folder = format!("/sys/class/net/{name}");
    let there = || std::path::Path::new(&folder).exists();
    let read = |what: &str| {
        let mut text = String::new();
        let file = std::fs::File::open(format!("{folder}/{what}"));
        file.and_then(|mut file| file.read_to_string(&mut text)).map(|_| text.trim().to_owned())
    };
    let output = with_echo(&["tap", "--name", &name, "--mtu", "4000"], |tool| {
        let began = Instant::now();
        // The carrier is the last thing that it is given, when packets can be passed on.
        while read("carrier").ok().as_deref() != Some("1") || read("operstate").is_err() {
            assert!(began.elapsed() < Duration::from_secs(100), "no {name}");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!((read("address").unwrap(), read("mtu").unwrap()), (MAC.into(), "4000".into()));
        kill(Pid::from_raw(tool.id().cast_signed()), Signal::SIGINT).unwrap();
    });
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("packets sent"), "{said}");
    assert!(!there(), "it goes with the tool");
}
