//! netback killed with SIGKILL under its guests, again and again: packets may be lost, and nothing else.

use std::time::Duration;

use hypervisor::DomId;
use hypervisor::xenbus::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::lan::{BRIDGE, Lan};
use testbed::libxl::{Device, Libxl, VifSpec};
use testbed::network::{Namespace, unless_here, v4};
use testbed::pauses::Pauses;
use testbed::scene::{Process, until};
use testbed::streams::Streams;

/// As many kills each way where nothing else is said.
const KILLS: usize = 50;

/// How many times to kill: as `KILLS` in the environment has it.
fn many() -> usize {
    std::env::var("KILLS").ok().and_then(|many| many.parse().ok()).unwrap_or(KILLS)
}

/// Prints how long the pauses were, and what went through meanwhile.
fn print(what: &str, pauses: Vec<u64>, bytes: [u64; 2]) {
    let [host, guest] = bytes.map(|bytes| bytes / 1_000_000);
    let pauses = Pauses(pauses);
    println!(
        "{what}: {pauses}; {host} MB went to the host and {guest} MB to the guest, as they were"
    );
}

/// A host whose watcher serves a guest.
struct Stage {
    lan: Lan,
    watch: Process,
    libxl: Libxl,
    netfront: Process,
    namespace: Namespace,
    vif: Device,
}

impl Stage {
    fn new(name: &str) -> Self {
        let lan = Lan::new(name).unwrap();
        let watch = lan.netback(&["--watch"]).unwrap();
        let libxl = Libxl::new(lan.scene.place().join("xenstored.sock")).unwrap();
        let me = libxl.domain("netback").unwrap();
        let namespace = Namespace::new().unwrap();
        let arguments = ["--timeout", "110", "tap", "--netns", namespace.name()];
        let mut netfront = lan.scene.start("netfront", "netfront", arguments).unwrap();
        let guest: DomId = libxl.domain("guest").unwrap();
        let bridge = Some(BRIDGE.to_owned());
        let vif = VifSpec { bridge, ..VifSpec::new("00:16:3e:0a:0b:0c") };
        let vif = libxl.make_vif(me, guest, &vif).unwrap();
        netfront.line_with("is eth0").unwrap();
        namespace.until_up("eth0").unwrap();
        namespace.address("eth0", 2).unwrap();
        namespace.until_answered(&v4(1), 56).unwrap();
        Self { lan, watch, libxl, netfront, namespace, vif }
    }

    fn device(&self) -> Value {
        self.lan.ctl(&["list"]).unwrap()[0].clone()
    }

    /// Kills whoever serves and waits for the next; says for how long nobody did.
    fn kill(&self) -> u64 {
        let pid = self.device()["pid"].as_i64().unwrap();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let mut device = Value::Null;
        until("another serves", || {
            device = self.device();
            Ok(device["pid"].is_i64() && device["pid"] != pid && device["resumed"] == 1)
        })
        .unwrap();
        device["pause_ms"].as_u64().unwrap()
    }
}

#[test]
fn tcp_comes_through_fifty_kills_as_it_was_sent() {
    if !unless_here("tcp_comes_through_fifty_kills_as_it_was_sent") {
        return;
    }
    let stage = Stage::new("netkill");
    let streams = Streams::begin(&stage.lan.host, &stage.namespace).unwrap();
    let mut pauses = Vec::new();
    for round in 0..many() {
        streams.flow("bytes flow both ways").unwrap();
        // Not always at the same place.
        std::thread::sleep(Duration::from_micros((round as u64 * 7919) % 20_000));
        pauses.push(stage.kill());
        for end in [&stage.vif.back, &stage.vif.front] {
            assert_eq!(stage.libxl.state(end).unwrap(), State::Connected, "{end}");
        }
    }
    streams.flow("bytes flow after the last").unwrap();
    print("netback, by its watcher", pauses, streams.end().unwrap());
    assert!(!stage.netfront.written().contains("gone"), "{}", stage.netfront.written());
    stage.libxl.destroy(&stage.vif).unwrap();
    drop(stage.netfront);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}

#[test]
fn tcp_comes_through_upgrades_as_it_was_sent() {
    if !unless_here("tcp_comes_through_upgrades_as_it_was_sent") {
        return;
    }
    let mut stage = Stage::new("netup");
    let streams = Streams::begin(&stage.lan.host, &stage.namespace).unwrap();
    let mut pauses = Vec::new();
    for _ in 0..6 {
        streams.flow("bytes flow both ways").unwrap();
        let pid = stage.device()["pid"].clone();
        let next = stage.lan.netback(&["--watch", "--takeover"]).unwrap();
        let mut device = Value::Null;
        until("another serves", || {
            device = stage.device();
            Ok(device["pid"].is_i64() && device["pid"] != pid && device["resumed"] == 1)
        })
        .unwrap();
        pauses.push(device["pause_ms"].as_u64().unwrap());
        let mut old = std::mem::replace(&mut stage.watch, next);
        assert!(old.ended().unwrap().success(), "{}", old.written());
    }
    // One that leaves its interface to its watcher, and its limits with it.
    stage.lan.ctl(&["limits", "--tx", "2000Mb/s"]).unwrap();
    let limits = stage.device()["limits"].clone();
    let pid = stage.device()["pid"].clone();
    stage.lan.ctl(&["handover"]).unwrap();
    until("another serves", || Ok(stage.device()["resumed"] == 1 && stage.device()["pid"] != pid))
        .unwrap();
    assert_eq!(stage.device()["limits"], limits);
    streams.flow("bytes flow after the last").unwrap();
    print("netback, upgraded", pauses, streams.end().unwrap());
    stage.libxl.destroy(&stage.vif).unwrap();
    drop(stage.netfront);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}

#[test]
fn an_interface_of_ones_own_is_taken_over() {
    if !unless_here("an_interface_of_ones_own_is_taken_over") {
        return;
    }
    let mut lan = Lan::new("netown").unwrap();
    lan.guest(&[], &[]).unwrap();
    lan.guests[0].namespace.until_answered(&v4(1), 56).unwrap();
    let streams = Streams::begin(&lan.host, &lan.guests[0].namespace).unwrap();
    let mut pauses = Vec::new();
    for _ in 0..5 {
        streams.flow("bytes flow both ways").unwrap();
        let mut next =
            lan.netback(&["--bridge", BRIDGE, "--domain", "guest2", "--takeover"]).unwrap();
        until("it serves", || Ok(lan.ctl(&["list"])?[0]["resumed"] == 1)).unwrap();
        let device = lan.ctl(&["list"]).unwrap()[0].clone();
        assert_eq!(device["bridge"], BRIDGE);
        pauses.push(device["pause_ms"].as_u64().unwrap());
        std::mem::swap(&mut lan.guests[0].netback, &mut next);
        assert!(next.ended().unwrap().success(), "{}", next.written());
    }
    streams.flow("bytes flow after the last").unwrap();
    print("netback of one's own, upgraded", pauses, streams.end().unwrap());
    lan.end().unwrap();
}
