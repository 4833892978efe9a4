//! `blkback --watch` where a toolstack makes the devices, as the processes that a user runs.

use std::fs::{self, File};
use std::path::PathBuf;

use hypervisor::DomId;
use hypervisor::xenbus::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::libxl::{Device, DiskSpec, Libxl};
use testbed::packages::XENSTORE;
use testbed::scene::{Process, Scene, until};
use testbed::skip::unless_installed;

const MIB: u64 = 1 << 20;

/// A machine with a watcher.
struct Stage {
    scene: Scene,
    _hypervisor: Process,
    watch: Process,
    libxl: Libxl,
    me: DomId,
}

impl Stage {
    fn new(name: &str) -> Self {
        let scene = Scene::new(name).unwrap();
        let hypervisor = scene.hypervisor().unwrap();
        let mut watch = scene.start("blkback", "blkback", ["--watch"]).unwrap();
        watch.line_with("ready: watching").unwrap();
        let libxl = Libxl::new(scene.place().join("xenstored.sock")).unwrap();
        let me = libxl.domain("blkback").unwrap();
        Self { scene, _hypervisor: hypervisor, watch, libxl, me }
    }

    fn image(&self, name: &str) -> String {
        let path = self.scene.folder().join(name);
        File::create(&path).unwrap().set_len(32 * MIB).unwrap();
        path.display().to_string()
    }

    /// A guest that reads, writes and verifies for a while.
    fn guest(&self, name: &str, seconds: &str) -> (Process, DomId) {
        let arguments = ["--domain-name", name, "--timeout", "110", "bench"];
        let work = ["--rw", "randrw", "--verify", "--depth", "16", "--seconds", seconds];
        let guest = self.scene.start("blkfront", "blkfront", [&arguments[..], &work].concat());
        (guest.unwrap(), self.libxl.domain(name).unwrap())
    }

    /// A guest that is there, whatever comes, and does nothing by itself.
    fn quiet_guest(&self, name: &str) -> DomId {
        self.scene.succeed("hypervisor", "hypervisor", ["create", name]).unwrap();
        self.scene.succeed("hypervisor", "hypervisor", ["unpause", name]).unwrap();
        self.libxl.domain(name).unwrap()
    }

    /// Has a quiet guest use its disk for a moment.
    fn use_disk(&self, guest: DomId) {
        let mut kernel = self.scene.program("blkfront", "blkfront").unwrap();
        kernel.args(["bench", "--verify", "--rw", "randrw", "--seconds", "0.2"]);
        kernel.env("DOMKIT_DOMAIN", guest.to_string());
        let mut kernel = self.scene.start_command("blkfront", kernel).unwrap();
        assert!(kernel.ended().unwrap().success(), "{}", kernel.written());
    }

    fn attach(&self, guest: DomId, spec: &DiskSpec) -> Device {
        self.libxl.attach(self.me, guest, spec).unwrap()
    }

    fn list(&self) -> Vec<Value> {
        let said = self.scene.succeed("blkback", "blkback", ["ctl", "list", "--json"]).unwrap();
        serde_json::from_str(&said).unwrap()
    }

    fn process_of(&self, disk: &Device) -> Option<u64> {
        let number = disk.back.rsplit('/').next().unwrap();
        let guest: u64 = disk.back.rsplit('/').nth(1).unwrap().parse().unwrap();
        let ours = |device: &Value| {
            device["guest_id"] == guest && (number == "51712") == (device["vdev"] == "xvda")
        };
        self.list().iter().find(|device| ours(device)).and_then(|device| device["pid"].as_u64())
    }

    /// Waits until the guest has had so much served of a disk.
    fn busy(&self, disk: &Device, requests: u64) {
        let control = self.control(disk).display().to_string();
        let ask = ["ctl", "counters", "--json", "--control", &control];
        until("the guest is served", || {
            let output = self.scene.run("blkback", "blkback", ask)?;
            let counters: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            Ok(counters["total"]["reads"].as_u64().unwrap_or(0) >= requests)
        })
        .unwrap();
    }

    fn control(&self, disk: &Device) -> PathBuf {
        let name = disk.back.split_once("/backend/").unwrap().1.replace('/', "-");
        self.scene.place().join(format!("blkback-{name}.sock"))
    }
}

#[test]
fn each_device_is_served_by_a_process_of_its_own_and_left_to_its_toolstack() {
    let mut stage = Stage::new("watch");
    let (mut one, first) = stage.guest("one", "2");
    let (mut two, second) = stage.guest("two", "2");
    let a = stage.attach(first, &DiskSpec::new(&stage.image("a.img")));
    let b = stage.attach(second, &DiskSpec::new(&stage.image("b.img")));
    until("both are listed", || Ok(stage.list().len() == 2)).unwrap();
    assert_ne!(stage.process_of(&a), stage.process_of(&b));
    for guest in [&mut one, &mut two] {
        assert!(guest.ended().unwrap().success(), "{}", guest.written());
    }
    // The guests' end alone removes nothing; the toolstack's word closes, and it removes.
    for disk in [&a, &b] {
        assert_ne!(stage.libxl.state(&disk.back).unwrap(), State::Unknown);
        stage.libxl.destroy(disk).unwrap();
    }
    until("nothing is served", || Ok(stage.list().is_empty())).unwrap();
    assert!(stage.watch.runs());
    assert_eq!(stage.libxl.get(&a.back).unwrap(), None, "and nobody makes it again");
    stage.watch.end().unwrap();
}

#[test]
fn a_disk_is_as_its_configuration_has_it() {
    let stage = Stage::new("watchro");
    let id = stage.quiet_guest("guest");
    // VDISK_CDROM, VDISK_REMOVABLE and VDISK_READONLY of io/blkif.h.
    let cd = DiskSpec { writable: false, cdrom: true, ..DiskSpec::new(&stage.image("cd.img")) };
    let kept = DiskSpec { discard: false, ..DiskSpec::new(&stage.image("keep.img")) };
    for (spec, info) in [(cd, "7"), (kept, "0")] {
        let disk = stage.attach(id, &spec);
        let mut kernel = stage.scene.program("blkfront", "blkfront").unwrap();
        kernel.args(["bench", "--seconds", "600"]).env("DOMKIT_DOMAIN", id.to_string());
        let kernel = stage.scene.start_command("blkfront", kernel).unwrap();
        until("it is connected", || Ok(stage.libxl.state(&disk.back)? == State::Connected))
            .unwrap();
        let get = |key: &str| stage.libxl.get(&format!("{}/{key}", disk.back)).unwrap();
        assert_eq!(get("info").as_deref(), Some(info));
        assert_eq!(get("feature-discard").as_deref(), Some("0"));
        kernel.kill().unwrap();
        stage.libxl.destroy(&disk).unwrap();
    }
    stage.watch.end().unwrap();
}

#[test]
fn what_cannot_be_served_is_said_where_the_toolstack_looks() {
    let stage = Stage::new("watchno");
    let id = stage.quiet_guest("guest");
    for (params, word) in [
        ("aio:/nowhere/at/all.img", "does not exist"),
        ("vhd:/images/a.vhd", "only raw images"),
        ("aio:", "the drive is empty"),
    ] {
        let spec = DiskSpec { params: params.into(), ..DiskSpec::new("") };
        let disk = stage.libxl.make(stage.me, id, &spec).unwrap();
        until("it is refused", || Ok(stage.libxl.state(&disk.back)? == State::Closed)).unwrap();
        for key in ["error", "hotplug-error"] {
            let words = stage.libxl.get(&format!("{}/{key}", disk.back)).unwrap().unwrap();
            assert!(words.contains(word), "{words}");
        }
        // Taking it away again is answered, and then it is forgotten.
        stage.libxl.detach(&disk).unwrap();
    }
    // The next of the same name is served.
    let disk = stage.attach(id, &DiskSpec::new(&stage.image("disk.img")));
    stage.use_disk(id);
    stage.libxl.destroy(&disk).unwrap();
    stage.watch.end().unwrap();
}

#[test]
fn a_disk_that_is_replaced_at_once_is_the_new_one() {
    let stage = Stage::new("watchnew");
    let id = stage.quiet_guest("guest");
    let images = [stage.image("one.img"), stage.image("two.img")];
    for round in 0..6 {
        let image = &images[round % 2];
        // Made over whatever was there.
        let disk = stage.libxl.make(stage.me, id, &DiskSpec::new(image)).unwrap();
        until("the new one is served", || {
            let listed = stage.list();
            Ok(stage.libxl.state(&disk.back)? == State::InitWait
                && listed.len() == 1
                && listed[0]["image"] == *image)
        })
        .unwrap();
        if round % 3 == 2 {
            stage.use_disk(id);
        }
    }
    stage.watch.end().unwrap();
}

#[test]
fn a_process_that_is_killed_is_started_again_and_the_others_go_on() {
    let mut stage = Stage::new("watchkill");
    let (mut one, first) = stage.guest("one", "6");
    let (mut two, second) = stage.guest("two", "6");
    let a = stage.attach(first, &DiskSpec::new(&stage.image("a.img")));
    let b = stage.attach(second, &DiskSpec::new(&stage.image("b.img")));
    stage.busy(&a, 50);
    stage.busy(&b, 50);
    let (hit, other) = (stage.process_of(&a).unwrap(), stage.process_of(&b).unwrap());
    kill(Pid::from_raw(hit.try_into().unwrap()), Signal::SIGKILL).unwrap();
    stage.watch.line_with("its process failed (signal: 9").unwrap();
    until("another serves", || Ok(stage.process_of(&a).is_some_and(|now| now != hit))).unwrap();
    for guest in [&mut one, &mut two] {
        assert!(guest.ended().unwrap().success(), "{}", guest.written());
    }
    assert_eq!(stage.process_of(&b), Some(other));
    stage.watch.end().unwrap();
}

#[test]
fn a_watcher_that_ends_leaves_disks_in_order_for_the_next() {
    let mut stage = Stage::new("watchend");
    // What keeps the domain while nobody serves is the guest's own work.
    let (mut guest, id) = stage.guest("guest", "8");
    let disk = stage.attach(id, &DiskSpec::new(&stage.image("disk.img")));
    for _ in 0..3 {
        stage.busy(&disk, 50);
        let me = stage.me.to_string();
        let mut again = stage.scene.program("blkback", "blkback").unwrap();
        again.arg("--watch").env("DOMKIT_DOMAIN", me);
        // Both at once, so that the domain is never empty: the new one finds the device served.
        let mut next = stage.scene.start_command("blkback", again).unwrap();
        next.line_with("is served already").unwrap();
        let said = std::mem::replace(&mut stage.watch, next).end().unwrap();
        assert!(said.contains("left as it is"), "{said}");
        // The frontend never heard of it.
        assert_eq!(stage.libxl.state(&disk.back).unwrap(), State::Connected);
        assert_eq!(stage.libxl.state(&disk.front).unwrap(), State::Connected);
    }
    assert!(guest.ended().unwrap().success(), "{}", guest.written());
    assert!(!guest.written().contains("gone"), "{}", guest.written());
    stage.watch.end().unwrap();
}

#[test]
fn a_killed_watchers_processes_go_on_and_are_not_doubled() {
    let mut stage = Stage::new("watchorph");
    let (mut guest, id) = stage.guest("guest", "6");
    let disk = stage.attach(id, &DiskSpec::new(&stage.image("disk.img")));
    stage.busy(&disk, 50);
    let serving = stage.process_of(&disk).unwrap();
    let mut again = stage.scene.program("blkback", "blkback").unwrap();
    again.arg("--watch").env("DOMKIT_DOMAIN", stage.me.to_string());
    let next = stage.scene.start_command("blkback", again).unwrap();
    std::mem::replace(&mut stage.watch, next).kill().unwrap();
    stage.watch.line_with("is served already").unwrap();
    assert_eq!(stage.process_of(&disk), Some(serving));
    // When that one ends, the new watcher sees to the disk.
    kill(Pid::from_raw(serving.try_into().unwrap()), Signal::SIGTERM).unwrap();
    until("another serves", || Ok(stage.process_of(&disk).is_some_and(|now| now != serving)))
        .unwrap();
    assert!(guest.ended().unwrap().success(), "{}", guest.written());
    stage.watch.end().unwrap();
}

#[test]
fn guests_boot_loaders_connect_and_close_and_the_next_kernel_connects() {
    let stage = Stage::new("watchboot");
    let id = stage.quiet_guest("guest");
    let disk = stage.attach(id, &DiskSpec::new(&stage.image("disk.img")));
    for _ in 0..5 {
        stage.use_disk(id);
    }
    assert_eq!(stage.list()[0]["connections"], 5);
    stage.libxl.detach(&disk).unwrap();
    stage.watch.end().unwrap();
}

#[test]
fn somebody_elses_script_is_waited_for() {
    let stage = Stage::new("watchalien");
    let (mut guest, id) = stage.guest("guest", "1");
    let image = stage.image("made.img");
    let script = Some(PathBuf::from("/etc/xen/scripts/block-other"));
    let params = "iqn.2001-04.com.example:disk".to_owned();
    let spec = DiskSpec { params, script, ..DiskSpec::new("") };
    let disk = stage.libxl.make(stage.me, id, &spec).unwrap();
    until("the script can run", || Ok(stage.libxl.state(&disk.back)? == State::InitWait)).unwrap();
    until("the guest is there", || Ok(stage.libxl.state(&disk.front)? == State::Initialised))
        .unwrap();
    stage.libxl.set(&format!("{}/physical-device-path", disk.back), &image).unwrap();
    until("it is open", || Ok(stage.process_of(&disk).is_some())).unwrap();
    assert_eq!(stage.libxl.state(&disk.back).unwrap(), State::InitWait, "it may still be refused");
    stage.libxl.set(&format!("{}/hotplug-status", disk.back), "connected").unwrap();
    assert!(guest.ended().unwrap().success(), "{}", guest.written());
    stage.watch.end().unwrap();
}

#[test]
fn our_script_passes_on_what_blkback_says() {
    if !unless_installed("blkback's hotplug script", &[XENSTORE]) {
        return;
    }
    let stage = Stage::new("watchscript");
    let id = stage.quiet_guest("guest");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../blkback/hotplug/block-domkit");
    let script = Some(fs::canonicalize(source).unwrap());
    let image = stage.image("disk.img");
    for kind in ["vbd", "vbd3"] {
        let missing = DiskSpec { kind, script: script.clone(), ..DiskSpec::new("/nowhere.img") };
        let error = stage.libxl.attach(stage.me, id, &missing).unwrap_err().to_string();
        assert!(error.contains("script: image '/nowhere.img': does not exist"), "{error}");
    }
    let params = image.clone();
    let spec = DiskSpec { kind: "vbd", params, script: script.clone(), ..DiskSpec::new("") };
    let disk = stage.attach(id, &spec);
    stage.use_disk(id);
    let get = |key: &str| stage.libxl.get(&format!("{}/{key}", disk.back)).unwrap();
    assert_eq!(get("physical-device-path"), Some(image));
    assert_eq!(get("hotplug-status").as_deref(), Some("connected"));
    stage.libxl.detach(&disk).unwrap();

    // A disk of the kernel's, or of another backend's script, is not touched.
    let theirs = DiskSpec { kind: "vbd", ..DiskSpec::new(&stage.image("other.img")) };
    let theirs = stage.libxl.make(stage.me, id, &theirs).unwrap();
    let ours = DiskSpec { number: 51728, vdev: "xvdb", ..DiskSpec::new(&stage.image("b.img")) };
    stage.attach(id, &ours);
    assert_eq!(stage.libxl.state(&theirs.back).unwrap(), State::Initialising);
    stage.watch.end().unwrap();
}

#[test]
fn a_script_hears_of_a_disk_whose_frontend_was_faster() {
    let stage = Stage::new("watchfast");
    let (mut guest, id) = stage.guest("guest", "1");
    // Another backend answers the toolstack first, as the kernel's does to each disk of type vbd.
    stage.watch.stop().unwrap();
    let script = Some(PathBuf::from("/etc/xen/scripts/block-domkit"));
    let spec = DiskSpec { kind: "vbd", script, ..DiskSpec::new(&stage.image("disk.img")) };
    let disk = stage.libxl.make(stage.me, id, &spec).unwrap();
    stage.libxl.set(&format!("{}/state", disk.back), "2").unwrap();
    until("the guest is there", || Ok(stage.libxl.state(&disk.front)? == State::Initialised))
        .unwrap();
    stage.watch.signal(Signal::SIGCONT).unwrap();
    let status = format!("{}/hotplug-status", disk.back);
    until("the script is told", || Ok(stage.libxl.get(&status)?.as_deref() == Some("connected")))
        .unwrap();
    assert!(guest.ended().unwrap().success(), "{}", guest.written());
    stage.watch.end().unwrap();
}

#[test]
fn a_watcher_with_nothing_to_do_does_nothing() {
    let stage = Stage::new("watchidle");
    let (guest, id) = stage.guest("guest", "600");
    let disk = stage.attach(id, &DiskSpec::new(&stage.image("disk.img")));
    stage.busy(&disk, 50);
    // A guest at work is no work for the watcher.
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", stage.watch.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.unwrap().to_owned()
    };
    until("it sleeps", || {
        let before = switches();
        std::thread::sleep(std::time::Duration::from_millis(500));
        Ok(before == switches())
    })
    .unwrap();
    drop(guest);
    stage.watch.end().unwrap();
}
