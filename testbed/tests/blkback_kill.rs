//! blkback killed with SIGKILL under its guests, again and again: to them it is a pause.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use hypervisor::xenbus::State;
use nix::sys::signal::Signal;
use testbed::fio;
use testbed::libxl::Device;
use testbed::pauses::Pauses;
use testbed::scene::{Process, Scene, until};
use testbed::watched::Watched;

const MIB: u64 = 1 << 20;

/// A machine with a watcher whose image has 32 MiB.
fn machine(name: &str, options: &[&str]) -> Watched {
    let scene = Scene::new(name).unwrap();
    let folder = scene.folder().to_owned();
    Watched::new(scene, &folder, 32 * MIB, options).unwrap()
}

/// A guest that reads, writes and verifies.
fn bench(machine: &Watched, more: &[&str]) -> (Process, Device) {
    let arguments = ["bench", "--rw", "randrw", "--verify"];
    machine.guest(&[&arguments[..], more].concat()).unwrap()
}

/// Kills whoever serves, and waits for whoever serves then. Says for how long nobody did, and how many
/// requests were owed; nothing where the guest was gone by then.
fn kill(machine: &Watched, guest: &mut Process) -> Option<(u64, u64)> {
    let pid = machine.pid().unwrap();
    machine.kill(pid).unwrap();
    let mut pause = 0;
    until("another serves", || {
        let device = machine.device()?;
        pause = device["pause_ms"].as_u64().unwrap_or(0);
        let another = device["pid"].is_i64() && device["pid"] != pid;
        Ok(another && (device["resumed"] == 1 || !guest.runs()))
    })
    .unwrap();
    if !guest.runs() {
        return None;
    }
    Some((pause, machine.total().unwrap()["reissued"].as_u64().unwrap()))
}

/// Kills `times` times while the guest is at work.
fn kills(machine: &Watched, times: usize, disk: &Device, guest: &mut Process) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    for round in 0..times {
        machine.busy(20).unwrap();
        // Not always at the same place.
        std::thread::sleep(Duration::from_micros((round as u64 * 7919) % 20_000));
        let Some(kill) = kill(machine, guest) else { break };
        all.push(kill);
        for end in [&disk.back, &disk.front] {
            assert_eq!(machine.libxl.state(end).unwrap(), State::Connected, "{end}");
        }
    }
    all
}

fn journals(machine: &Watched) -> Vec<String> {
    let names = fs::read_dir(machine.scene.place()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".journal")).collect()
}

fn end(machine: Watched, disk: &Device) {
    machine.libxl.destroy(disk).unwrap();
    until("its journals go with the disk", || Ok(journals(&machine).is_empty())).unwrap();
    machine.watch.end().unwrap();
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
    let wanted = many();
    // As long as there is somebody to be killed.
    let (checked, trimmed) = (wanted.div_ceil(5), wanted.div_ceil(16));
    // The guest's own buffers, granted while it runs, and such that each queue keeps and copies through.
    for (bounce, times) in [("1", wanted * 3 / 5), ("0", wanted * 2 / 5)] {
        // So slow that it is not over before.
        let machine = machine("kill", &["--limit-iops", "150"]);
        // Blocks of more than 11 segments go in indirect requests.
        let jobs = format!(
            "[checked]\nrw=randrw\nbsrange=512-128k\nblockalign=512\niodepth=32\nverify=crc32c\n\
             fsync=16\nsize=16M\nloops={checked}\n\
             [trimmed]\nrw=randtrimwrite\nbs=4k\niodepth=16\nverify=crc32c\nfsync=32\noffset=16M\n\
             size=8M\nloops={trimmed}\n"
        );
        let mut command = fio::command(&machine.scene, "kill", &jobs).unwrap();
        command.env("DOMKIT_FIO_BOUNCE", bounce).env("DOMKIT_FIO_QUEUES", "2");
        let mut guest = machine.scene.start_command("fio", command).unwrap();
        let disk = machine.attach().unwrap();
        let kills = kills(&machine, times, &disk, &mut guest);
        print(&format!("fio, bounce {bounce}"), &kills);
        assert_eq!(kills.len(), times, "fio was over: {}", guest.written());
        assert!(kills.iter().any(|(_, owed)| *owed > 0), "nothing was ever owed: {kills:?}");
        assert_eq!(machine.device().unwrap()["queues"], 2);
        machine.scene.succeed("blkback", "blkback", ["ctl", "limits", "--iops", "0"]).unwrap();
        let status = guest.ended().unwrap();
        assert!(status.success(), "bounce {bounce}: {status}\n{}", guest.written());
        let jobs = fio::jobs(&machine.scene, "kill").unwrap();
        assert!(jobs[0].read.total_ios > 0 && jobs[1].trim.total_ios > 0, "{jobs:?}");
        assert!(!guest.written().contains("gone"), "{}", guest.written());
        end(machine, &disk);
    }
}

#[test]
fn a_guest_in_full_flight_does_not_notice() {
    let machine = machine("flight", &[]);
    let (mut guest, disk) = bench(&machine, &["--depth", "32", "--seconds", "15"]);
    machine.busy(20).unwrap();
    let kills = kills(&machine, 10, &disk, &mut guest);
    print("blkfront at full speed", &kills);
    assert!(!kills.is_empty(), "it was over before: {}", guest.written());
    let status = guest.ended().unwrap();
    assert!(status.success(), "{}", guest.written());
    assert!(guest.written().contains("all as written"), "{}", guest.written());
    assert!(!guest.written().contains("went away"), "{}", guest.written());
    end(machine, &disk);
}

/// Kills whoever serves while the watcher looks away, does something, and lets it look again.
fn behind_its_back(machine: &Watched, act: impl FnOnce()) {
    machine.busy(20).unwrap();
    let pid = machine.pid().unwrap();
    machine.watch.stop().unwrap();
    machine.kill(pid).unwrap();
    until("it is dead", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    })
    .unwrap();
    act();
    machine.watch.signal(Signal::SIGCONT).unwrap();
}

#[test]
fn a_journal_that_is_damaged_is_refused_and_its_guest_connects_anew() {
    let mut machine = machine("torn", &[]);
    let (mut guest, disk) = bench(&machine, &["--depth", "8", "--seconds", "8"]);
    machine.busy(20).unwrap();
    let journals = journals(&machine);
    assert_eq!(journals.len(), 1, "{journals:?}");
    let path = machine.scene.place().join(journals.iter().min().unwrap());
    behind_its_back(&machine, || {
        File::options().write(true).open(&path).unwrap().write_at(&[0x55; 8], 40).unwrap();
    });
    let line = machine.watch.line_with("its rings cannot be gone on with").unwrap();
    assert!(line.contains("0.journal") && line.contains("its header is damaged"), "{line}");
    machine.busy(20).unwrap();
    assert_eq!(machine.device().unwrap()["resumed"], 0);
    // The one that was made for the new rings is as good as any.
    assert!(kill(&machine, &mut guest).is_some(), "it was over before: {}", guest.written());
    let status = guest.ended().unwrap();
    assert!(status.success(), "{}", guest.written());
    assert!(guest.written().contains("all as written"), "{}", guest.written());
    end(machine, &disk);
}

#[test]
fn without_journals_a_guest_connects_anew() {
    let mut machine = machine("nojournal", &["--no-journal"]);
    let (mut guest, disk) = bench(&machine, &["--depth", "8", "--seconds", "5"]);
    behind_its_back(&machine, || {});
    machine.watch.line_with("device taken over").unwrap();
    machine.busy(20).unwrap();
    assert_eq!(machine.device().unwrap()["resumed"], 0);
    assert!(journals(&machine).is_empty());
    assert!(guest.ended().unwrap().success(), "{}", guest.written());
    end(machine, &disk);
}
