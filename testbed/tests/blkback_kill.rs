//! blkback killed with SIGKILL under its guests, again and again: to them it is a pause.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use hypervisor::DomId;
use hypervisor::xenbus::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::fio;
use testbed::libxl::{Device, DiskSpec, Libxl};
use testbed::pauses::Pauses;
use testbed::scene::{Process, Scene, until};

const MIB: u64 = 1 << 20;

/// A machine with a watcher, and a guest with a disk.
struct Stage {
    scene: Scene,
    _hypervisor: Process,
    watch: Process,
    libxl: Libxl,
    me: DomId,
    image: String,
}

impl Stage {
    fn new(name: &str, options: &[&str]) -> Self {
        let scene = Scene::new(name).unwrap();
        let hypervisor = scene.hypervisor().unwrap();
        let arguments = [&["--watch", "--queues", "2"], options].concat();
        let mut watch = scene.start("blkback", "blkback", arguments).unwrap();
        watch.line_with("ready: watching").unwrap();
        let libxl = Libxl::new(scene.place().join("xenstored.sock")).unwrap();
        let me = libxl.domain("blkback").unwrap();
        let path = scene.folder().join("disk.img");
        File::create(&path).unwrap().set_len(32 * MIB).unwrap();
        let image = path.display().to_string();
        Self { scene, _hypervisor: hypervisor, watch, libxl, me, image }
    }

    /// A guest that reads, writes and verifies.
    fn bench(&self, more: &[&str]) -> (Process, Device) {
        let arguments = ["--timeout", "110", "bench", "--rw", "randrw", "--verify"];
        let guest = self.scene.start("blkfront", "blkfront", [&arguments[..], more].concat());
        let guest = guest.unwrap();
        let disk = self.attach();
        (guest, disk)
    }

    fn attach(&self) -> Device {
        let guest = self.libxl.domain("guest").unwrap();
        self.libxl.attach(self.me, guest, &DiskSpec::new(&self.image)).unwrap()
    }

    fn device(&self) -> Option<Value> {
        let said = self.scene.run("blkback", "blkback", ["ctl", "list", "--json"]).unwrap();
        let listed: Value = serde_json::from_slice(&said.stdout).ok()?;
        listed.get(0).cloned()
    }

    /// Waits until the process that serves now has answered so many requests.
    fn busy(&self, least: u64) {
        until("the guest is served", || {
            let output = self.scene.run("blkback", "blkback", ["ctl", "counters", "--json"])?;
            let counters: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let count = |name: &str| counters["total"][name].as_u64().unwrap_or(0);
            Ok(count("reads") + count("writes") >= least)
        })
        .unwrap();
    }

    /// Kills whoever serves, and waits for whoever serves then. Says for how long nobody did, and how many
    /// requests were owed; nothing where the guest was gone by then.
    fn kill(&self, guest: &mut Process) -> Option<(u64, u64)> {
        let pid = self.device().expect("somebody serves")["pid"].as_i64().unwrap();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let mut pause = 0;
        until("another serves", || {
            let Some(device) = self.device() else { return Ok(false) };
            pause = device["pause_ms"].as_u64().unwrap_or(0);
            Ok(device["pid"] != pid && (device["resumed"] == 1 || !guest.runs()))
        })
        .unwrap();
        if !guest.runs() {
            return None;
        }
        let counters =
            self.scene.succeed("blkback", "blkback", ["ctl", "counters", "--json"]).unwrap();
        let counters: Value = serde_json::from_str(&counters).unwrap();
        Some((pause, counters["total"]["reissued"].as_u64().unwrap()))
    }

    /// Kills `times` times while the guest is at work.
    fn kills(&self, times: usize, disk: &Device, guest: &mut Process) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        for round in 0..times {
            self.busy(20);
            // Not always at the same place.
            std::thread::sleep(Duration::from_micros((round as u64 * 7919) % 20_000));
            let Some(kill) = self.kill(guest) else { break };
            all.push(kill);
            for end in [&disk.back, &disk.front] {
                assert_eq!(self.libxl.state(end).unwrap(), State::Connected, "{end}");
            }
        }
        all
    }

    fn journals(&self) -> Vec<String> {
        let names = fs::read_dir(self.scene.place()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".journal")).collect()
    }

    fn end(self, disk: &Device) {
        self.libxl.destroy(disk).unwrap();
        until("its journals go with the disk", || Ok(self.journals().is_empty())).unwrap();
        self.watch.end().unwrap();
    }
}

/// How many times to kill under fio: as `KILLS` in the environment has it.
fn many() -> usize {
    std::env::var("KILLS").ok().and_then(|many| many.parse().ok()).unwrap_or(50)
}

/// Prints how long the pauses were, and how much was owed.
fn print(what: &str, kills: &[(u64, u64)]) {
    let owed: u64 = kills.iter().map(|(_, owed)| owed).sum();
    let pauses: Pauses = kills.iter().map(|(pause, _)| *pause).collect();
    println!("{what}: {pauses}; {owed} requests begun anew");
}

#[test]
fn fio_does_not_notice_fifty_kills() {
    if !fio::unless_here("fio while blkback is killed") {
        return;
    }
    let kills = many();
    // As long as there is somebody to be killed.
    let (checked, trimmed) = (kills.div_ceil(5), kills.div_ceil(16));
    // The guest's own buffers, granted while it runs, and such that each queue keeps and copies through.
    for (bounce, times) in [("1", kills * 3 / 5), ("0", kills * 2 / 5)] {
        // So slow that it is not over before.
        let stage = Stage::new("kill", &["--limit-iops", "150"]);
        // Blocks of more than 11 segments go in indirect requests.
        let jobs = format!(
            "[checked]\nrw=randrw\nbsrange=512-128k\nblockalign=512\niodepth=32\nverify=crc32c\n\
             fsync=16\nsize=16M\nloops={checked}\n\
             [trimmed]\nrw=randtrimwrite\nbs=4k\niodepth=16\nverify=crc32c\nfsync=32\noffset=16M\n\
             size=8M\nloops={trimmed}\n"
        );
        let mut command = fio::command(&stage.scene, "kill", &jobs).unwrap();
        command.env("DOMKIT_FIO_BOUNCE", bounce).env("DOMKIT_FIO_QUEUES", "2");
        let mut guest = stage.scene.start_command("fio", command).unwrap();
        let disk = stage.attach();
        let kills = stage.kills(times, &disk, &mut guest);
        print(&format!("fio, bounce {bounce}"), &kills);
        assert_eq!(kills.len(), times, "fio was over: {}", guest.written());
        assert!(kills.iter().any(|(_, owed)| *owed > 0), "nothing was ever owed: {kills:?}");
        assert_eq!(stage.device().unwrap()["queues"], 2);
        stage.scene.succeed("blkback", "blkback", ["ctl", "limits", "--iops", "0"]).unwrap();
        let status = guest.ended().unwrap();
        assert!(status.success(), "bounce {bounce}: {status}\n{}", guest.written());
        let jobs = fio::jobs(&stage.scene, "kill").unwrap();
        assert!(jobs[0].read.total_ios > 0 && jobs[1].trim.total_ios > 0, "{jobs:?}");
        assert!(!guest.written().contains("gone"), "{}", guest.written());
        stage.end(&disk);
    }
}

#[test]
fn a_guest_in_full_flight_does_not_notice() {
    let stage = Stage::new("flight", &[]);
    let (mut guest, disk) = stage.bench(&["--depth", "32", "--seconds", "15"]);
    stage.busy(20);
    let kills = stage.kills(10, &disk, &mut guest);
    print("blkfront at full speed", &kills);
    assert!(!kills.is_empty(), "it was over before: {}", guest.written());
    let status = guest.ended().unwrap();
    assert!(status.success(), "{}", guest.written());
    assert!(guest.written().contains("all as written"), "{}", guest.written());
    assert!(!guest.written().contains("went away"), "{}", guest.written());
    stage.end(&disk);
}

/// Kills whoever serves while the watcher looks away, does something, and lets it look again.
fn behind_its_back(stage: &Stage, act: impl FnOnce()) {
    stage.busy(20);
    let pid = stage.device().unwrap()["pid"].as_i64().unwrap();
    stage.watch.stop().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    until("it is dead", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    })
    .unwrap();
    act();
    stage.watch.signal(Signal::SIGCONT).unwrap();
}

#[test]
fn a_journal_that_is_damaged_is_refused_and_its_guest_connects_anew() {
    let mut stage = Stage::new("torn", &[]);
    let (mut guest, disk) = stage.bench(&["--depth", "8", "--seconds", "8"]);
    stage.busy(20);
    let journals = stage.journals();
    assert_eq!(journals.len(), 1, "{journals:?}");
    let path = stage.scene.place().join(journals.iter().min().unwrap());
    behind_its_back(&stage, || {
        File::options().write(true).open(&path).unwrap().write_at(&[0x55; 8], 40).unwrap();
    });
    let line = stage.watch.line_with("its rings cannot be gone on with").unwrap();
    assert!(line.contains("0.journal") && line.contains("its header is damaged"), "{line}");
    stage.busy(20);
    assert_eq!(stage.device().unwrap()["resumed"], 0);
    // The one that was made for the new rings is as good as any.
    assert!(stage.kill(&mut guest).is_some(), "it was over before: {}", guest.written());
    let status = guest.ended().unwrap();
    assert!(status.success(), "{}", guest.written());
    assert!(guest.written().contains("all as written"), "{}", guest.written());
    stage.end(&disk);
}

#[test]
fn without_journals_a_guest_connects_anew() {
    let mut stage = Stage::new("nojournal", &["--no-journal"]);
    let (mut guest, disk) = stage.bench(&["--depth", "8", "--seconds", "5"]);
    behind_its_back(&stage, || {});
    stage.watch.line_with("device taken over").unwrap();
    stage.busy(20);
    assert_eq!(stage.device().unwrap()["resumed"], 0);
    assert!(stage.journals().is_empty());
    assert!(guest.ended().unwrap().success(), "{}", guest.written());
    stage.end(&disk);
}
