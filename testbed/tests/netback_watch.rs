//! `netback --watch` where a toolstack makes the interfaces, as the processes that a user runs.

use hypervisor::DomId;
use hypervisor::xenbus::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::lan::{BRIDGE, Lan};
use testbed::libxl::{Device, Libxl, VifSpec};
use testbed::network::{Namespace, unless_here, v4};
use testbed::scene::{Process, until};

const MAC: &str = "00:16:3e:0a:0b:0c";

/// A host with a watcher, and a toolstack.
struct Stage {
    lan: Lan,
    watch: Process,
    libxl: Libxl,
    me: DomId,
}

/// A guest that waits for an interface.
struct Waiting {
    netfront: Process,
    namespace: Namespace,
    id: DomId,
}

impl Stage {
    fn new(name: &str) -> Self {
        let lan = Lan::new(name).unwrap();
        let watch = lan.netback(&["--watch"]).unwrap();
        let libxl = Libxl::new(lan.scene.place().join("xenstored.sock")).unwrap();
        let me = libxl.domain("netback").unwrap();
        Self { lan, watch, libxl, me }
    }

    fn guest(&self) -> Waiting {
        let namespace = Namespace::new().unwrap();
        let mut netfront = self.lan.scene.program("netfront", "netfront").unwrap();
        netfront.args(["--timeout", "110", "tap", "--netns", namespace.name()]);
        // It tells of each connection.
        netfront.env("DOMKIT_LOG", "info");
        let netfront = self.lan.scene.start_command("netfront", netfront).unwrap();
        let id = self.libxl.domain("guest").unwrap();
        Waiting { netfront, namespace, id }
    }

    fn make(&self, guest: DomId, spec: &VifSpec) -> Device {
        self.libxl.make_vif(self.me, guest, spec).unwrap()
    }

    /// As a toolstack makes one whose backend is all that it needs.
    fn attach(&self, guest: &mut Waiting, spec: &VifSpec) -> Device {
        let vif = self.make(guest.id, spec);
        guest.meet();
        guest.namespace.until_answered(&v4(1), 56).unwrap();
        vif
    }

    fn master(&self, interface: &str) -> Option<String> {
        self.lan.host.link(interface)?["master"].as_str().map(str::to_owned)
    }

    fn process(&self) -> Option<i32> {
        let list = self.lan.ctl(&["list"]).unwrap();
        list[0]["pid"].as_u64().and_then(|pid| pid.try_into().ok())
    }

    fn get(&self, vif: &Device, key: &str) -> Option<String> {
        self.libxl.get(&format!("{}/{key}", vif.back)).unwrap()
    }
}

impl Waiting {
    /// How often it took rings into use.
    fn connections(&self) -> usize {
        self.netfront.written().lines().filter(|line| line.contains("queues=")).count()
    }

    /// Waits for the interface, and gives it its address.
    fn meet(&mut self) {
        self.netfront.line_with("is eth0").unwrap();
        self.namespace.until_up("eth0").unwrap();
        self.namespace.address("eth0", 2).unwrap();
    }
}

fn on_bridge() -> VifSpec {
    VifSpec { bridge: Some(BRIDGE.to_owned()), ..VifSpec::new(MAC) }
}

#[test]
fn without_a_script_the_bridge_is_seen_to_here() {
    if !unless_here("without_a_script_the_bridge_is_seen_to_here") {
        return;
    }
    let stage = Stage::new("vifwatch");
    let mut guest = stage.guest();
    let spec = VifSpec { rate: Some("62500,50000".into()), ..on_bridge() };
    let vif = stage.attach(&mut guest, &spec);
    let name = format!("vif{}.0", guest.id);
    assert_eq!(stage.master(&name).as_deref(), Some(BRIDGE));
    let device = stage.lan.ctl(&["list"]).unwrap()[0].clone();
    assert_eq!((&device["mac"], &device["interface"]), (&MAC.into(), &name.clone().into()));
    assert_eq!(device["limits"]["tx"], 1_250_000);
    // What toolstacks change in the store while it is in use. Nonsense changes nothing.
    for (rate, limit) in [("125000,50000", 2_500_000.into()), ("0,0", Value::Null)] {
        stage.libxl.set(&format!("{}/rate", vif.back), rate).unwrap();
        until("the rate is taken in", || Ok(stage.lan.ctl(&["list"])?[0]["limits"]["tx"] == limit))
            .unwrap();
    }
    stage.libxl.set(&format!("{}/rate", vif.back), "fast").unwrap();
    guest.namespace.until_answered(&v4(1), 56).unwrap();
    // It is the toolstack's to take away.
    let refused = stage.lan.ctl(&["detach"]).unwrap_err().to_string();
    assert!(refused.contains("xl network-detach"), "{refused}");
    stage.libxl.detach(&vif).unwrap();
    until("nothing is served", || Ok(stage.lan.ctl(&["list"])?.as_array().unwrap().is_empty()))
        .unwrap();
    until("its interface is gone", || Ok(stage.lan.host.link(&name).is_none())).unwrap();
    drop(guest.netfront);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}

#[test]
fn a_script_finds_the_interface_and_its_word_is_waited_for() {
    if !unless_here("a_script_finds_the_interface_and_its_word_is_waited_for") {
        return;
    }
    let stage = Stage::new("vifscript");
    let mut guest = stage.guest();
    let script = Some("/etc/xen/scripts/vif-bridge".into());
    let vif = stage.make(guest.id, &VifSpec { script, name: Some("web0".into()), ..on_bridge() });
    stage.libxl.reaches(&vif.back, State::InitWait).unwrap();
    // As vif-bridge does it, to an interface that is there by now, and not on the bridge yet. It would
    // refuse one that has its other name already, and the kernel lets none be renamed that is up.
    let usual = format!("vif{}.0", guest.id);
    assert!(stage.lan.host.link("web0").is_none());
    assert_eq!(stage.master(&usual), None);
    stage.lan.host.ip(["link", "set", &usual, "name", "web0"]).unwrap();
    stage.lan.host.ip(["link", "set", "web0", "master", BRIDGE]).unwrap();
    stage.lan.host.ip(["link", "set", "web0", "up"]).unwrap();
    until("the guest is there", || {
        let state = stage.libxl.state(&vif.front)?;
        Ok(matches!(state, State::Initialised | State::Connected))
    })
    .unwrap();
    assert_eq!(stage.libxl.state(&vif.back).unwrap(), State::InitWait, "it may be refused yet");
    stage.libxl.set(&format!("{}/hotplug-status", vif.back), "connected").unwrap();
    guest.meet();
    guest.namespace.until_answered(&v4(1), 56).unwrap();
    let device = stage.lan.ctl(&["list"]).unwrap()[0].clone();
    assert_eq!((&device["interface"], &device["bridge"]), (&"web0".into(), &BRIDGE.into()));
    assert!(stage.lan.host.link(&usual).is_none());
    // A script is not run again for the next process: what it did stays.
    let before = stage.process().unwrap();
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    until("another serves", || Ok(stage.process().is_some_and(|now| now != before))).unwrap();
    guest.namespace.until_answered(&v4(1), 56).unwrap();
    assert_eq!(stage.master("web0").as_deref(), Some(BRIDGE));
    assert_eq!(guest.connections(), 1, "stock guests would not connect again");
    stage.libxl.destroy(&vif).unwrap();
    until("its interface is gone", || Ok(stage.lan.host.link("web0").is_none())).unwrap();
    drop(guest);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}

#[test]
fn a_watcher_that_ends_leaves_interfaces_in_order_for_the_next() {
    if !unless_here("a_watcher_that_ends_leaves_interfaces_in_order_for_the_next") {
        return;
    }
    let mut stage = Stage::new("vifend");
    let mut guest = stage.guest();
    let vif = stage.attach(&mut guest, &on_bridge());
    for _ in 0..2 {
        let mut again = stage.lan.scene.program("netback", "netback").unwrap();
        again.arg("--watch").env("DOMKIT_DOMAIN", stage.me.to_string());
        let again = stage.lan.host.inside(&again).unwrap();
        // Both at once, so that the domain is never empty: the new one finds the device served.
        let mut next = stage.lan.scene.start_command("netback", again).unwrap();
        next.line_with("is served already").unwrap();
        let said = std::mem::replace(&mut stage.watch, next).end().unwrap();
        assert!(said.contains("left as it is"), "{said}");
        assert_eq!(stage.libxl.state(&vif.back).unwrap(), State::Connected);
        guest.namespace.until_answered(&v4(1), 56).unwrap();
        assert_eq!(stage.libxl.state(&vif.front).unwrap(), State::Connected);
    }
    assert_eq!(guest.connections(), 1, "{}", guest.netfront.written());
    stage.libxl.destroy(&vif).unwrap();
    drop(guest);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}

#[test]
fn what_cannot_be_served_is_said_where_the_toolstack_looks() {
    if !unless_here("what_cannot_be_served_is_said_where_the_toolstack_looks") {
        return;
    }
    let stage = Stage::new("vifno");
    let scene = &stage.lan.scene;
    for verb in ["create", "unpause"] {
        scene.succeed("hypervisor", "hypervisor", [verb, "quiet"]).unwrap();
    }
    let quiet = stage.libxl.domain("quiet").unwrap();
    for (spec, words) in [
        (VifSpec::new("1:2"), "mac '1:2': must be six bytes"),
        (VifSpec { bridge: Some("nobridge".into()), ..on_bridge() }, "there is no such interface"),
        (VifSpec { name: Some("a/b".into()), ..on_bridge() }, "printable characters"),
        (VifSpec { ip: Some("10.0.0.0/8".into()), ..on_bridge() }, "networks are not taken"),
    ] {
        let vif = stage.make(quiet, &spec);
        until("it is refused", || Ok(stage.libxl.state(&vif.back)? == State::Closed)).unwrap();
        for key in ["error", "hotplug-error"] {
            let said = stage.get(&vif, key).unwrap_or_default();
            assert!(said.contains(words), "{said}");
        }
        stage.libxl.detach(&vif).unwrap();
    }
    // The next is served, to those addresses that it may use.
    let mut guest = stage.guest();
    let vif = stage.attach(&mut guest, &VifSpec { ip: Some(v4(2)), ..on_bridge() });
    stage.libxl.destroy(&vif).unwrap();
    drop(guest);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}
