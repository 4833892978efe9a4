//! Images that refuse writes for a while: what the guest is told, and what is held until they do not any more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testbed::libxl::Device;
use testbed::scene::{Process, Scene, until};
use testbed::skip;
use testbed::watched::Watched;

const MIB: u64 = 1 << 20;

/// A file system of 4 MiB.
struct Small(PathBuf);

impl Small {
    fn new(scene: &Scene) -> Result<Self, String> {
        let folder = scene.folder().join("small");
        fs::create_dir(&folder).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=4m", "none"], &folder)?;
        Ok(Self(folder))
    }

    /// Another size.
    fn resize(&self, size: &str) {
        run("mount", &["-o", &format!("remount,size={size}")], &self.0).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run("umount", &["-l"], &self.0);
    }
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Result<(), String> {
    let output = Command::new(program).args(arguments).arg(folder).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or(said)
}

/// A guest whose disk's image lies in a file system that has not room for all of it.
struct Stage {
    small: Small,
    machine: Watched,
}

impl Stage {
    fn new(test: &str, name: &str, policy: &str) -> Option<Self> {
        if !skip::unless_root(test) {
            return None;
        }
        let scene = Scene::new(name).unwrap();
        let small = match Small::new(&scene) {
            Ok(small) => small,
            Err(why) => {
                skip::because(test, &format!("no tmpfs can be mounted: {why}"));
                return None;
            }
        };
        let machine = Watched::new(scene, &small.0, 16 * MIB, &["--on-error", policy]).unwrap();
        Some(Self { small, machine })
    }

    /// A guest that writes 8 MiB of a pattern, and its disk.
    fn write(&self) -> (Process, Device) {
        let data = self.machine.pattern(8 * MIB).unwrap();
        self.machine.guest(&["write", &data]).unwrap()
    }
}

#[test]
fn a_guest_is_told_where_nothing_is_held() {
    let Some(stage) = Stage::new("a_guest_is_told_where_nothing_is_held", "errsay", "report")
    else {
        return;
    };
    let (mut guest, disk) = stage.write();
    assert!(!guest.ended().unwrap().success(), "{}", guest.written());
    assert_eq!(stage.machine.device().unwrap()["held"], Value::Null);
    stage.machine.end(&disk).unwrap();
}

#[test]
fn what_finds_no_space_is_held_until_there_is_some() {
    for policy in ["hold-full", "hold"] {
        let test = "what_finds_no_space_is_held_until_there_is_some";
        let Some(stage) = Stage::new(test, "errhold", policy) else { return };
        let machine = &stage.machine;
        let (mut guest, disk) = stage.write();
        let device = machine.held(libc::ENOSPC).unwrap();
        // People see it as well.
        let said = machine.scene.succeed("blkback", "blkback", ["ctl", "list"]).unwrap();
        assert!(said.contains("requests held: No space left"), "{said}");
        // Whoever is killed leaves it to the next.
        let pid = device["pid"].as_i64().unwrap();
        machine.kill(pid).unwrap();
        let pid = machine.another(pid, |device| device["held"].is_object()).unwrap()["pid"].clone();
        // And so does one that is asked to leave its disk, though it can finish nothing.
        machine.scene.succeed("blkback", "blkback", ["ctl", "handover"]).unwrap();
        let pid = pid.as_i64().unwrap();
        machine.another(pid, |device| device["held"].is_object()).unwrap();
        assert!(guest.runs(), "{}", guest.written());
        stage.small.resize("16m");
        if policy == "hold" {
            let said =
                machine.scene.succeed("blkback", "blkback", ["ctl", "resume", "--json"]).unwrap();
            assert!(said.trim().parse::<u64>().is_ok(), "{said}");
        }
        let status = guest.ended().unwrap();
        assert!(status.success(), "{}", guest.written());
        assert!(machine.is_whole().unwrap(), "the image is not what was written");
        let device = machine.device().unwrap();
        assert_eq!((&device["held"], &device["lost"]), (&Value::Null, &Value::Null));
        stage.machine.end(&disk).unwrap();
    }
}

#[test]
fn a_disk_that_holds_can_be_taken_away() {
    let test = "a_disk_that_holds_can_be_taken_away";
    if !skip::unless_root(test) {
        return;
    }
    let scene = Scene::new("errgo").unwrap();
    let small = match Small::new(&scene) {
        Ok(small) => small,
        Err(why) => return skip::because(test, &format!("no tmpfs can be mounted: {why}")),
    };
    let hypervisor = scene.hypervisor().unwrap();
    let image = small.0.join("disk.img").display().to_string();
    for force in [false, true] {
        let arguments = ["--image", &image, "--size", "16M", "--on-error", "hold"];
        let mut blkback = scene.start("blkback", "blkback", arguments).unwrap();
        blkback.line_with("ready:").unwrap();
        let data = scene.folder().join("data");
        fs::write(&data, vec![7; 8 << 20]).unwrap();
        let data = data.display().to_string();
        let write = ["--timeout", "110", "write", &data];
        let mut guest = scene.start("blkfront", "blkfront", write).unwrap();
        until("something is held", || {
            let said = scene.run("blkback", "blkback", ["ctl", "list", "--json"])?;
            let listed: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            Ok(listed[0]["held"]["errno"] == json!(libc::ENOSPC))
        })
        .unwrap();
        let detach = if force { vec!["ctl", "detach", "--force"] } else { vec!["ctl", "detach"] };
        scene.succeed("blkback", "blkback", detach).unwrap();
        assert!(blkback.ended().unwrap().success(), "{}", blkback.written());
        assert!(!guest.ended().unwrap().success(), "{}", guest.written());
    }
    hypervisor.end().unwrap();
}
