//! Images that fail while they are served: cut short, too large for their process, dead and replaced.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::packages::PRLIMIT;
use testbed::scene::{Scene, until};
use testbed::skip;
use testbed::watched::Watched;

const MIB: u64 = 1 << 20;

/// A machine whose image, of 16 MiB, is a plain file.
fn machine(name: &str, options: &[&str]) -> Watched {
    let scene = Scene::new(name).unwrap();
    let folder = scene.folder().to_owned();
    Watched::new(scene, &folder, 16 * MIB, options).unwrap()
}

#[test]
fn reads_of_an_image_that_is_cut_short_are_told_or_held() {
    for policy in ["report", "hold"] {
        let machine = machine("errcut", &["--on-error", policy]);
        let image = File::options().write(true).open(&machine.image).unwrap();
        let whole = fs::read(machine.pattern(16 * MIB).unwrap()).unwrap();
        image.write_all_at(&whole, 0).unwrap();
        let looks = ["bench", "--rw", "randread", "--seconds", "600"];
        let (mut guest, disk) = machine.guest(&looks).unwrap();
        machine.busy(20).unwrap();
        image.set_len(MIB).unwrap();
        if policy == "hold" {
            machine.held(libc::EIO).unwrap();
            assert!(machine.total().unwrap()["stalled"].as_u64() > Some(0));
            // It is dead, and nobody could serve it by opening it anew.
            let why = machine.resume().unwrap().unwrap_err();
            assert!(why.contains("not whole any more"), "{why}");
        } else {
            let failed = || Ok(machine.total()?["medium_errors"].as_u64() > Some(0));
            until("the guest is told", failed).unwrap();
            assert_eq!(machine.device().unwrap()["held"], Value::Null);
        }
        assert!(guest.runs(), "{}", guest.written());
        image.set_len(16 * MIB).unwrap();
        image.write_all_at(&whole, 0).unwrap();
        // What is held is tried again by itself, and later requests are answered as ever.
        until("nothing is held", || Ok(machine.device()?["held"].is_null())).unwrap();
        let before = machine.total().unwrap()["reads"].as_u64().unwrap();
        machine.busy(before + 100).unwrap();
        guest.signal(Signal::SIGTERM).unwrap();
        let ended = guest.ended().unwrap();
        assert_eq!(ended.success(), policy == "hold", "{}", guest.written());
        machine.libxl.destroy(&disk).unwrap();

        let copy = machine.scene.folder().join("copy").display().to_string();
        let (mut guest, disk) = machine.guest(&["read", "--output", &copy]).unwrap();
        assert!(guest.ended().unwrap().success(), "{}", guest.written());
        assert!(fs::read(&copy).unwrap() == whole, "another image was read");
        machine.end(&disk).unwrap();
    }
}

#[test]
fn a_limit_on_files_sizes_ends_no_process() {
    let test = "a_limit_on_files_sizes_ends_no_process";
    if !skip::unless_installed(test, &[PRLIMIT]) {
        return;
    }
    for policy in ["report", "hold"] {
        let machine = machine("errbig", &["--on-error", policy]);
        let data = machine.pattern(8 * MIB).unwrap();
        let limit = |pid: i64, bytes: &str| {
            let (pid, size) = (format!("--pid={pid}"), format!("--fsize={bytes}:unlimited"));
            let done = Command::new(PRLIMIT.name).args([pid, size]).status().unwrap();
            assert!(done.success());
        };
        // Whoever it starts for the disk has its limits.
        limit(machine.watch.pid().into(), "4194304");
        let (mut guest, disk) = machine.guest(&["write", &data]).unwrap();
        if policy == "report" {
            assert!(!guest.ended().unwrap().success(), "{}", guest.written());
        } else {
            let device = machine.held(libc::EFBIG).unwrap();
            limit(device["pid"].as_i64().unwrap(), "unlimited");
            machine.resume().unwrap().unwrap();
            assert!(guest.ended().unwrap().success(), "{}", guest.written());
            assert!(machine.is_whole().unwrap(), "the image is not what was written");
        }
        assert!(!machine.watch.written().contains("SIGXFSZ"), "{}", machine.watch.written());
        machine.end(&disk).unwrap();
    }
}

#[test]
fn a_dead_image_is_given_up_for_the_one_that_came_back() {
    for way in ["resume", "kill"] {
        // So slow that it is not read before it dies.
        let machine = machine("errdead", &["--on-error", "hold", "--limit-iops", "30"]);
        let folder = machine.scene.folder();
        let [gone, right, wrong] = ["gone.img", "right.img", "wrong.img"].map(|n| folder.join(n));
        let data = machine.pattern(16 * MIB).unwrap();
        fs::copy(&data, &machine.image).unwrap();
        fs::copy(&data, &right).unwrap();
        File::create(&wrong).unwrap().set_len(MIB).unwrap();
        let copy = folder.join("copy").display().to_string();
        let (mut guest, disk) = machine.guest(&["read", "--output", &copy]).unwrap();
        machine.busy(5).unwrap();
        let pid = machine.pid().unwrap();

        fs::rename(&machine.image, &gone).unwrap();
        File::options().write(true).open(&gone).unwrap().set_len(0).unwrap();
        machine.held(libc::EIO).unwrap();
        let refused = |words: &str| {
            let why = machine.resume().unwrap().unwrap_err();
            assert!(why.contains(words), "{why}");
            assert_eq!(machine.pid().unwrap(), pid, "it goes on as it is");
        };
        refused("is gone");
        fs::rename(&wrong, &machine.image).unwrap();
        refused("of 1048576 bytes where the guest's disk has 16777216");
        if way == "kill" {
            // The next one does not take it for the guest's either.
            machine.kill(pid).unwrap();
            let refused =
                || Ok(machine.watch.written().contains("has 1048576 bytes, and the guest"));
            until("it is refused", refused).unwrap();
        }
        fs::rename(&right, &machine.image).unwrap();
        if way == "resume" {
            machine.resume().unwrap().unwrap();
        }
        machine.another(pid, |device| device["resumed"] == 1).unwrap();
        machine.scene.succeed("blkback", "blkback", ["ctl", "limits", "--iops", "0"]).unwrap();
        assert!(guest.ended().unwrap().success(), "{}", guest.written());
        assert!(fs::read(&copy).unwrap() == fs::read(&data).unwrap(), "by {way}: something else");
        machine.end(&disk).unwrap();
    }
}
