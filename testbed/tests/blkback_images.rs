//! What `blkback` says to images and options that cannot be served, and what it does with those that
//! can.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use testbed::scene::Scene;

fn scene() -> Scene {
    let scene = Scene::new("images").unwrap();
    // Found beside blkback by those runs that get as far as looking for a hypervisor.
    testbed::programs::build("hypervisor", "hypervisor", testbed::programs::Build::Tests).unwrap();
    scene
}

/// Runs `blkback` with `arguments`, which must fail with `code` and words that hold all of `words`.
fn refused(scene: &Scene, code: i32, arguments: &[&str], words: &[&str]) {
    let output = scene.run("blkback", "blkback", arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: '{word}' is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn file(scene: &Scene, name: &str, len: u64) -> (PathBuf, String) {
    let path = scene.folder().join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    let shown = path.display().to_string();
    (path, shown)
}

#[test]
fn images_that_cannot_be_served() {
    let scene = scene();
    let missing = scene.folder().join("none.img").display().to_string();
    refused(&scene, 1, &["--image", &missing], &[&missing, "does not exist", "--size"]);
    let nowhere = format!("{missing}/deeper/disk.img");
    refused(&scene, 1, &["--image", &nowhere, "--size", "1M"], &[&nowhere]);
    let folder = scene.folder().display().to_string();
    refused(&scene, 1, &["--image", &folder], &[&folder, "is a folder"]);
    refused(&scene, 1, &["--image", "/dev/null"], &["/dev/null", "neither"]);
    let (_, empty) = file(&scene, "empty.img", 0);
    refused(&scene, 1, &["--image", &empty], &[&empty, "no bytes", "--size"]);
    let (_, odd) = file(&scene, "odd.img", 1_000_001);
    refused(&scene, 1, &["--image", &odd], &[&odd, "1000001 bytes", "512-byte sector", "1000448"]);
    let (_, half) = file(&scene, "half.img", 4096 + 512);
    let sector = ["--image", &half, "--sector-size", "4096"];
    refused(&scene, 1, &sector, &[&half, "4608 bytes", "4096", "--sector-size 512"]);
    let no_sector = ["--image", &half, "--sector-size", "1000"];
    refused(&scene, 1, &no_sector, &["sector size '1000'", "512 or 4096"]);
    refused(&scene, 1, &[], &["nothing to serve", "--image"]);
    let keeps_nothing = ["--image", &half, "--engine", "null"];
    refused(&scene, 1, &keeps_nothing, &[&half, "leave --image out"]);
}

#[test]
fn an_image_that_may_not_be_written() {
    let scene = scene();
    let (path, shown) = file(&scene, "locked.img", 1 << 20);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    // Permissions bind everybody but root, whom a file system that is mounted read-only binds.
    let readable = fs::metadata("/proc/self").unwrap().uid() == 0;
    if readable {
        let shown = "/proc/sys/kernel/ostype";
        refused(&scene, 1, &["--image", shown], &[shown]);
        return;
    }
    refused(&scene, 1, &["--image", &shown], &[&shown, "may not be written", "--readonly"]);
}

#[test]
fn options_that_cannot_be() {
    let scene = scene();
    let (_, image) = file(&scene, "disk.img", 1 << 20);
    for (option, value, words) in [
        ("--vdev", "vda", "not a disk's name"),
        ("--vdev", "sdq", "from sda to sdp"),
        ("--size", "10X", "must be a whole number of bytes"),
        ("--queues", "0", "0 is not in 1..=64"),
        ("--queues", "65", "65 is not in 1..=64"),
        ("--ring-page-order", "5", "5 is not in 0..=4"),
        ("--direct", "maybe", "must be on, off or auto"),
        ("--engine", "steam", "possible values"),
        ("--limit-bytes", "fast", "must be a whole number of bytes"),
        ("--domain", "", "1 to 256 characters"),
        ("--domain", "40000", "from 0 to 32751"),
    ] {
        refused(&scene, 2, &["--image", &image, option, value], &[value, words]);
    }
    refused(&scene, 2, &["--image", &image, "--poll", "--no-poll"], &["cannot be used with"]);
    refused(&scene, 2, &["--fly"], &["--fly"]);
    let absent = ["--image", &image, "--domain", "31999"];
    refused(&scene, 1, &absent, &["--domain '31999'", "there is no such domain", "blkback"]);
    let smaller = ["--image", &image, "--size", "4K"];
    refused(&scene, 1, &smaller, &["4096"]);
}

#[test]
fn two_writers_are_refused_and_two_readers_are_not() {
    let scene = scene();
    let mut hypervisor = scene.hypervisor().unwrap();
    let (_, image) = file(&scene, "disk.img", 1 << 20);
    let mut first = scene.start("blkback", "blkback", ["--image", &image]).unwrap();
    first.line_with("ready").unwrap();
    let pid = format!("pid {}", first.pid());
    refused(&scene, 1, &["--image", &image], &[&image, "in use by another blkback", &pid]);
    let reader = ["--image", &image, "--readonly", "--vdev", "xvdb"];
    refused(&scene, 1, &reader, &[&image, "in use by another blkback"]);
    first.end().unwrap();

    let mut readers = Vec::new();
    for vdev in ["xvda", "xvdb"] {
        let arguments = ["--image", &image, "--readonly", "--vdev", vdev];
        let mut reader = scene.start("blkback", "blkback", arguments).unwrap();
        reader.line_with("ready").unwrap();
        readers.push(reader);
    }
    refused(&scene, 1, &["--image", &image], &[&image, "in use by another blkback"]);
    for reader in readers {
        reader.end().unwrap();
    }
    assert!(hypervisor.runs());
    hypervisor.end().unwrap();
}

#[test]
fn a_new_image_is_sparse_and_an_old_one_keeps_its_bytes() {
    let scene = scene();
    let hypervisor = scene.hypervisor().unwrap();
    let path = scene.folder().join("new.img");
    let shown = path.display().to_string();
    let arguments = ["--image", &shown, "--size", "10G"];
    let mut blkback = scene.start("blkback", "blkback", arguments).unwrap();
    let line = blkback.line_with("ready").unwrap();
    assert!(line.contains("10 GiB"), "{line}");
    blkback.end().unwrap();
    let about = fs::metadata(&path).unwrap();
    assert_eq!(about.len(), 10 << 30);
    assert!(about.blocks() * 512 < 1 << 20, "{} blocks", about.blocks());

    fs::write(&path, vec![0x5A; 8192]).unwrap();
    let arguments = ["--image", &shown, "--json"];
    let mut blkback = scene.start("blkback", "blkback", arguments).unwrap();
    let line = blkback.line_with("ready").unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(said["ready"]["size"], 8192);
    blkback.end().unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![0x5A; 8192]);
    hypervisor.end().unwrap();
}

#[test]
fn it_explains_itself() {
    let scene = scene();
    let help = scene.succeed("blkback", "blkback", ["--help"]).unwrap();
    for word in ["--image", "--size", "--limit-iops", "ctl", "Examples:"] {
        assert!(help.contains(word), "{word}");
    }
    let man = scene.succeed("blkback", "blkback", ["man"]).unwrap();
    assert!(man.contains(".TH blkback"), "{man}");
    let bash = scene.succeed("blkback", "blkback", ["completions", "bash"]).unwrap();
    assert!(bash.contains("_blkback"));
    refused(&scene, 1, &["ctl", "rings"], &["no blkback runs here", "--control"]);
    let absent = scene.folder().join("absent.sock").display().to_string();
    let asked = ["ctl", "--control", &absent, "rings"];
    refused(&scene, 1, &asked, &[&absent, "no blkback answers"]);
    let list = scene.succeed("blkback", "blkback", ["ctl", "list", "--json"]).unwrap();
    assert_eq!(list.trim(), "[]");
}
