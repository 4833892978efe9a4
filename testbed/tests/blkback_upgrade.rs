//! blkback replaced by another program while its guests work: by `--takeover`, by `ctl handover`, and by the
//! same command once more. To the guests each is a pause.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use hypervisor::DomId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testbed::libxl::{Device, DiskSpec, Libxl};
use testbed::pauses::Pauses;
use testbed::scene::{Process, Scene, until};

const MIB: u64 = 1 << 20;

/// A machine with an image, and two builds of one program.
struct Stage {
    scene: Scene,
    _hypervisor: Process,
    libxl: Libxl,
    image: String,
    next: PathBuf,
}

impl Stage {
    fn new(name: &str) -> Self {
        let scene = Scene::new(name).unwrap();
        let hypervisor = scene.hypervisor().unwrap();
        let libxl = Libxl::new(scene.place().join("xenstored.sock")).unwrap();
        let image = scene.folder().join("disk.img");
        File::create(&image).unwrap().set_len(32 * MIB).unwrap();
        let next = scene.folder().join("blkback-next");
        fs::copy(scene.program("blkback", "blkback").unwrap().get_program(), &next).unwrap();
        let image = image.display().to_string();
        Self { scene, _hypervisor: hypervisor, libxl, image, next }
    }

    fn ctl(&self, arguments: &[&str]) -> Value {
        let arguments = [&["ctl", "--json"], arguments].concat();
        let said = self.scene.succeed("blkback", "blkback", arguments).unwrap();
        serde_json::from_str(&said).unwrap()
    }

    fn device(&self) -> Value {
        self.ctl(&["list"])[0].clone()
    }

    /// The other build.
    fn other(&self, arguments: &[&str]) -> Process {
        let own = self.scene.program("blkback", "blkback").unwrap();
        let mut command = Command::new(&self.next);
        command.args(arguments);
        for (key, value) in own.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        self.scene.start_command("blkback-next", command).unwrap()
    }

    /// A guest that reads, writes and verifies.
    fn guest(&self, seconds: &str) -> Process {
        let arguments =
            ["--timeout", "110", "bench", "--rw", "randrw", "--verify", "--depth", "32"];
        let arguments = [&arguments[..], &["--seconds", seconds]].concat();
        self.scene.start("blkfront", "blkfront", arguments).unwrap()
    }

    fn attach(&self) -> Device {
        let (me, guest) = (self.libxl.domain("blkback").unwrap(), self.libxl.domain("guest"));
        self.libxl.attach(me, guest.unwrap(), &DiskSpec::new(&self.image)).unwrap()
    }

    /// Waits until the process that serves now has answered something, and says which it is.
    fn busy(&self) -> i64 {
        let mut pid = 0;
        until("the guest is served", || {
            let said = self.scene.run("blkback", "blkback", ["ctl", "counters", "--json"])?;
            let counters: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            pid = self.ctl(&["list"])[0]["pid"].as_i64().unwrap_or(0);
            Ok(pid > 0 && counters["total"]["reads"].as_u64() > Some(20))
        })
        .unwrap();
        pid
    }

    /// Waits until another than `old` has taken up the rings, and says for how long nobody served.
    fn resumed(&self, old: i64) -> u64 {
        let mut device = Value::Null;
        until("another goes on", || {
            device = self.device();
            let another = device["pid"].is_i64() && device["pid"] != old;
            Ok(another && device["resumed"] == 1)
        })
        .unwrap();
        device["pause_ms"].as_u64().unwrap()
    }
}

/// That it ran to its end, as if nothing had been.
fn unimpressed(mut guest: Process) {
    assert!(guest.runs(), "it was over before: {}", guest.written());
    let status = guest.ended().unwrap();
    let written = guest.written();
    assert!(status.success() && written.contains("all as written"), "{written}");
    assert!(!written.contains("went away"), "{written}");
}

#[test]
fn a_watcher_takes_every_disk_over_from_the_one_before() {
    let stage = Stage::new("upwatch");
    let arguments = ["--watch", "--queues", "2"];
    let mut old = stage.scene.start("blkback", "blkback", arguments).unwrap();
    old.line_with("ready: watching").unwrap();
    let guest = stage.guest("12");
    let disk = stage.attach();
    stage.busy();
    let mut pauses = Vec::new();
    for round in 0..6 {
        let pid = stage.busy();
        let arguments = ["--watch", "--queues", "2", "--takeover"];
        let mut next = match round % 2 {
            0 => stage.other(&arguments),
            _ => stage.scene.start("blkback", "blkback", arguments).unwrap(),
        };
        next.line_with("ready: watching").unwrap();
        pauses.push(stage.resumed(pid));
        assert!(old.ended().unwrap().success(), "{}", old.written());
        assert!(old.written().contains("handed over") || round > 0, "{}", old.written());
        old = next;
    }
    println!("watchers that take over: {}", Pauses(pauses));
    // What is killed now is started again by the one that is there.
    let pid = stage.busy();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    stage.resumed(pid);
    unimpressed(guest);
    stage.libxl.destroy(&disk).unwrap();
    old.end().unwrap();
}

#[test]
fn a_process_that_left_its_disk_is_started_anew_by_its_watcher() {
    let stage = Stage::new("uphand");
    let mut watch = stage.scene.start("blkback", "blkback", ["--watch"]).unwrap();
    watch.line_with("ready: watching").unwrap();
    let guest = stage.guest("6");
    let disk = stage.attach();
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let pid = stage.busy();
        stage.ctl(&["limits", "--iops", "30000", "--bytes", "1G"]);
        stage.ctl(&["handover"]);
        pauses.push(stage.resumed(pid));
        assert_eq!(stage.device()["limits"], json!({ "iops": 30000, "bytes": 1_u64 << 30 }));
    }
    println!("ctl handover under a watcher: {}", Pauses(pauses));
    // So do they where it is killed.
    let pid = stage.busy();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    stage.resumed(pid);
    assert_eq!(stage.device()["limits"]["iops"], 30000);
    unimpressed(guest);
    stage.libxl.destroy(&disk).unwrap();
    watch.end().unwrap();
}

#[test]
fn a_disk_of_ones_own_is_taken_over_and_gone_on_with() {
    let stage = Stage::new("upown");
    let arguments = ["--image", &stage.image, "--queues", "2"];
    let mut old = stage.scene.start("blkback", "blkback", arguments).unwrap();
    old.line_with("ready:").unwrap();
    let guest = stage.guest("8");
    let mut pauses = Vec::new();
    for round in 0..4 {
        let pid = stage.busy();
        let arguments = [&arguments[..], &["--takeover"]].concat();
        let mut next = match round % 2 {
            0 => stage.other(&arguments),
            _ => stage.scene.start("blkback", "blkback", arguments).unwrap(),
        };
        next.line_with("ready:").unwrap();
        pauses.push(stage.resumed(pid));
        assert!(old.ended().unwrap().success(), "{}", old.written());
        old = next;
    }
    println!("own disks taken over: {}", Pauses(pauses));
    unimpressed(guest);
    old.end().unwrap();
    assert!(left(&stage).is_empty(), "{:?}", left(&stage));
}

/// The journals that there are.
fn left(stage: &Stage) -> Vec<PathBuf> {
    let all = fs::read_dir(stage.scene.place()).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|extension| extension == "journal")).collect()
}

#[test]
fn a_disk_of_ones_own_whose_process_is_killed_goes_on_by_the_same_command() {
    let stage = Stage::new("upkill");
    // As on Xen, where Dom0 does not end with a process of it.
    for verb in ["create", "unpause"] {
        stage.scene.succeed("hypervisor", "hypervisor", [verb, "storage"]).unwrap();
    }
    let me: DomId = stage.libxl.domain("storage").unwrap();
    let start = || {
        let mut command = stage.scene.program("blkback", "blkback").unwrap();
        command.args(["--image", &stage.image]).env("DOMKIT_DOMAIN", me.to_string());
        let mut process = stage.scene.start_command("blkback", command).unwrap();
        process.line_with("ready:").unwrap();
        process
    };
    let mut process = start();
    let guest = stage.guest("8");
    for round in 0..5 {
        let pid = stage.busy();
        if round == 0 {
            stage.ctl(&["limits", "--iops", "20000"]);
        }
        process.kill().unwrap();
        process = start();
        stage.resumed(pid);
        assert_eq!(stage.device()["limits"]["iops"], 20000);
    }
    unimpressed(guest);
    process.end().unwrap();
    assert!(left(&stage).is_empty(), "{:?}", left(&stage));
}

#[test]
fn what_cannot_go_on_is_refused_before_anything_stops() {
    let stage = Stage::new("upno");
    let mut old = stage.scene.start("blkback", "blkback", ["--image", &stage.image]).unwrap();
    old.line_with("ready:").unwrap();
    let guest = stage.guest("3");
    let pid = stage.busy();
    let path =
        hypervisor::daemon::control::socket::path_named("blkback", &stage.scene.place(), "disk");
    let mut client = hypervisor::daemon::control::Client::connect("blkback", &path).unwrap();
    let words = client.ask(&json!({ "command": "handover", "formats": [7] })).unwrap().unwrap_err();
    assert!(words.contains("the next one reads 0x7"), "{words}");
    // Another image is nobody's to take over, and one that is not there is found out first.
    let gone = stage.scene.folder().join("gone.img").display().to_string();
    let arguments = ["--image", &gone, "--takeover"];
    let output = stage.scene.run("blkback", "blkback", arguments).unwrap();
    assert!(!output.status.success());
    assert_eq!(stage.busy(), pid);
    unimpressed(guest);
    old.end().unwrap();

    let mut memory =
        stage.scene.start("blkback", "blkback", ["--engine", "memory", "--size", "1M"]).unwrap();
    memory.line_with("ready:").unwrap();
    let output = stage.scene.run("blkback", "blkback", ["ctl", "handover"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("its own memory"), "{said}");
    memory.end().unwrap();
}
