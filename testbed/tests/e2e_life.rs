//! Disks whose guests and daemons come, go and are killed: what was written stays, and what
//! belongs to others goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::store::{Store as _, StoreError, Transaction};
use hypervisor::xenstore::Client;
use serde_json::Value;
use testbed::fio;
use testbed::programs::{Build, build};
use testbed::scene::{PATIENCE, Process, Scene, to_its_end, until};

const MIB: usize = 1 << 20;

/// Bytes that repeat nowhere, told apart by `seed`.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut word = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&word());
    }
    bytes.truncate(length);
    bytes
}

fn image(scene: &Scene, name: &str, bytes: &[u8]) -> PathBuf {
    let path = scene.folder().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn serve(scene: &Scene, image: &Path, more: &[&str]) -> Process {
    let arguments = [&["--image", image.to_str().unwrap()], more].concat();
    let mut blkback = scene.start("blkback", "blkback", arguments).unwrap();
    blkback.line_with("ready").unwrap();
    blkback
}

fn ctl(scene: &Scene, image: &Path, what: &[&str]) -> Value {
    let arguments = [&["ctl", "--json", "--image", image.to_str().unwrap()], what].concat();
    let said = scene.succeed("blkback", "blkback", arguments).unwrap();
    serde_json::from_str(&said).unwrap()
}

/// Waits until the guest that is connected has been served `least` requests.
fn busy(scene: &Scene, image: &Path, least: u64) {
    until("the guest is served", || {
        // Without a guest there is nothing to count yet, which the daemon says in words.
        let path = image.to_str().unwrap();
        let what = ["ctl", "counters", "--json", "--image", path];
        let output = scene.run("blkback", "blkback", what)?;
        let Ok(said) = serde_json::from_slice::<Value>(&output.stdout) else { return Ok(false) };
        let total = &said["total"];
        let of = |name: &str| total[name].as_u64().unwrap_or(0);
        Ok(of("reads") + of("writes") >= least)
    })
    .unwrap();
}

/// Waits until no guest has the disk.
fn free(scene: &Scene, image: &Path) {
    until("the guest is gone", || Ok(ctl(scene, image, &["list"])[0]["guest_id"].is_null()))
        .unwrap();
}

/// Every device that is left in the store, and every domain's home.
fn left_in_the_store(scene: &Scene) -> Vec<String> {
    let store = Client::connect(scene.place().join("xenstored.sock")).unwrap();
    let list = |path: &str| match store.list(Transaction::NONE, path) {
        Ok(names) => names,
        Err(StoreError::Missing(_)) => Vec::new(),
        Err(error) => panic!("{error}"),
    };
    let mut found = Vec::new();
    for domain in list("/local/domain") {
        for kind in ["device/vbd", "backend/vbd"] {
            let path = format!("/local/domain/{domain}/{kind}");
            found.extend(list(&path).into_iter().map(|name| format!("{path}/{name}")));
        }
        if domain != "0" {
            found.push(format!("/local/domain/{domain}"));
        }
    }
    found
}

/// Ends the hypervisor, which must have nothing left.
fn end(scene: &Scene, hypervisor: Process) {
    until("all that domains had in the store is gone", || Ok(left_in_the_store(scene).is_empty()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", left_in_the_store(scene)));
    hypervisor.end().unwrap();
}

/// The least of several looks at descriptors and private memory: either may be more for a moment.
fn at_rest(process: &Process) -> (usize, u64) {
    let mut least = (usize::MAX, u64::MAX);
    for _ in 0..10 {
        least.0 = least.0.min(process.descriptors().unwrap());
        least.1 = least.1.min(process.private_kib().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
    least
}

/// The second half of what was seen must not be above the first, but for some KiB that an allocator
/// may keep.
fn flat(what: &str, seen: &[(usize, u64)]) {
    let (early, late) = seen.split_at(seen.len() / 2);
    let least = |half: &[(usize, u64)]| {
        let descriptors = half.iter().map(|seen| seen.0).min().unwrap();
        (descriptors, half.iter().map(|seen| seen.1).min().unwrap())
    };
    let (early, late) = (least(early), least(late));
    assert!(late.0 <= early.0 && late.1 <= early.1 + 4096, "{what}: {seen:?}");
}

#[test]
fn each_of_twenty_guests_finds_what_those_before_it_left() {
    let scene = Scene::new("guests").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let mut wanted = noise(99, 4 * MIB);
    let image = image(&scene, "disk.img", &wanted);
    let blkback = serve(&scene, &image, &[]);
    let (piece, copy) = (scene.folder().join("piece"), scene.folder().join("copy"));
    let (mut backs, mut hypervisors) = (Vec::new(), Vec::new());
    for round in 0..20_usize {
        if round % 2 == 0 {
            let bytes = noise(round as u64, 512 * (1 + 97 * round));
            let at = 512 * ((round * 7919) % (8192 - bytes.len() / 512));
            wanted[at..at + bytes.len()].copy_from_slice(&bytes);
            fs::write(&piece, bytes).unwrap();
            let at = at.to_string();
            let arguments = ["write", "--offset", &at, piece.to_str().unwrap()];
            scene.succeed("blkfront", "blkfront", arguments).unwrap();
        } else {
            let arguments = ["read", "--output", copy.to_str().unwrap()];
            scene.succeed("blkfront", "blkfront", arguments).unwrap();
            assert!(fs::read(&copy).unwrap() == wanted, "guest {round} read something else");
        }
        free(&scene, &image);
        backs.push(at_rest(&blkback));
        hypervisors.push(at_rest(&hypervisor));
    }
    flat("blkback", &backs);
    flat("hypervisor", &hypervisors);
    let device = ctl(&scene, &image, &["list"])[0].clone();
    assert_eq!(device["connections"], 20);
    assert_eq!(device["fault"], Value::Null);
    blkback.end().unwrap();
    assert!(fs::read(&image).unwrap() == wanted, "the image holds something else");
    end(&scene, hypervisor);
}

#[test]
fn a_backend_killed_under_fio_is_only_a_pause() {
    if !fio::unless_here("fio while blkback is killed") {
        return;
    }
    // Buffers that are granted for as long as fio runs, and such as the queue itself grants.
    for bounce in ["0", "1"] {
        let scene = Scene::new("pause").unwrap();
        let hypervisor = scene.hypervisor().unwrap();
        let image = image(&scene, "disk.img", &vec![0; 8 * MIB]);
        // So slow that it cannot be over before it has been killed three times.
        let limits = ["--limit-iops", "300"];
        let mut blkback = serve(&scene, &image, &limits);
        let jobs = "[verify]\nrw=randrw\nbsrange=512-32k\nblockalign=512\niodepth=16\n\
                    verify=crc32c\nfsync=64\nsize=8M\n";
        let mut command = fio::command(&scene, "pause", jobs).unwrap();
        command.env("DOMKIT_FIO_BOUNCE", bounce);
        let mut guest = scene.start_command("fio", command).unwrap();
        for _ in 0..3 {
            busy(&scene, &image, 50);
            blkback.kill().unwrap();
            assert!(guest.runs(), "{}", guest.written());
            blkback = serve(&scene, &image, &limits);
        }
        busy(&scene, &image, 50);
        ctl(&scene, &image, &["limits", "--iops", "0"]);
        let status = guest.ended().unwrap();
        assert!(status.success(), "bounce {bounce}: {status}\n{}", guest.written());
        let jobs = fio::jobs(&scene, "pause").unwrap();
        assert!(jobs[0].read.total_ios > 0 && jobs[0].write.total_ios > 0, "{jobs:?}");
        blkback.end().unwrap();
        end(&scene, hypervisor);
    }
}

#[test]
fn what_was_acknowledged_outlives_the_backend() {
    let scene = Scene::new("kept").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img", &vec![0; 4 * MIB]);
    for round in 1..=3 {
        let blkback = serve(&scene, &image, &[]);
        let bytes = noise(round, 4 * MIB);
        let from = scene.folder().join("from");
        fs::write(&from, &bytes).unwrap();
        scene.succeed("blkfront", "blkfront", ["write", from.to_str().unwrap()]).unwrap();
        blkback.kill().unwrap();
        assert!(fs::read(&image).unwrap() == bytes, "round {round}");
    }
    end(&scene, hypervisor);
}

#[test]
fn a_guest_destroyed_under_load_makes_room_for_the_next() {
    let scene = Scene::new("destroy").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img", &vec![0; 8 * MIB]);
    let blkback = serve(&scene, &image, &[]);
    for _ in 0..3 {
        let load = ["bench", "--rw", "randrw", "--depth", "16", "--seconds", "600"];
        let mut guest = scene.start("blkfront", "blkfront", load).unwrap();
        busy(&scene, &image, 100);
        scene.succeed("hypervisor", "hypervisor", ["destroy", "guest"]).unwrap();
        assert!(!guest.ended().unwrap().success(), "{}", guest.written());
        free(&scene, &image);
    }
    let said = scene.succeed("blkfront", "blkfront", ["info"]).unwrap();
    assert!(said.contains("8388608 bytes"), "{said}");
    free(&scene, &image);
    assert_eq!(ctl(&scene, &image, &["list"])[0]["fault"], Value::Null);
    blkback.end().unwrap();
    end(&scene, hypervisor);
}

#[test]
fn a_killed_neighbour_harms_nobody() {
    let scene = Scene::new("two").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let images = ["one", "two"].map(|name| image(&scene, &format!("{name}.img"), &[0; 4 * MIB]));
    let one = serve(&scene, &images[0], &["--domain", "one"]);
    let two = serve(&scene, &images[1], &["--domain", "two"]);
    let load = |name: &str, seconds: &str| {
        let who = ["--domain-name", name, "bench", "--rw", "randrw", "--verify"];
        let what = ["--depth", "8", "--seconds", seconds];
        scene.start("blkfront", "blkfront", [&who[..], &what[..]].concat()).unwrap()
    };
    let neighbour = load("one", "600");
    busy(&scene, &images[0], 100);
    let mut guest = load("two", "4");
    busy(&scene, &images[1], 100);
    // Both halves of the other disk, in the middle of their work.
    one.kill().unwrap();
    neighbour.kill().unwrap();
    let status = guest.ended().unwrap();
    assert!(status.success(), "{}", guest.written());
    assert!(guest.written().contains("all as written"), "{}", guest.written());
    assert!(!guest.written().contains("went away"), "{}", guest.written());
    free(&scene, &images[1]);
    assert_eq!(ctl(&scene, &images[1], &["list"])[0]["connections"], 1);
    // The other disk can be had again.
    let again = serve(&scene, &images[0], &["--domain", "one"]);
    scene.succeed("blkfront", "blkfront", ["--domain-name", "one", "info"]).unwrap();
    again.end().unwrap();
    two.end().unwrap();
    end(&scene, hypervisor);
}

#[test]
fn limits_hold_and_are_lifted() {
    let scene = Scene::new("limits").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img", &vec![0; 4 * MIB]);
    let blkback = serve(&scene, &image, &["--limit-iops", "200"]);
    let bench = |more: &[&str]| -> (f64, f64) {
        let what = ["bench", "--depth", "16", "--seconds", "1.5", "--json"];
        let said = scene.succeed("blkfront", "blkfront", [&what[..], more].concat()).unwrap();
        let report: Value = serde_json::from_str(&said).unwrap();
        free(&scene, &image);
        (report["requests"].as_f64().unwrap(), report["seconds"].as_f64().unwrap())
    };
    // A slow machine makes it less and never more: the rate, and what may go at once at first.
    let (requests, seconds) = bench(&[]);
    assert!(requests <= 200.0 * seconds + 60.0, "{requests} in {seconds} s");
    let limited = requests / seconds;

    ctl(&scene, &image, &["limits", "--iops", "0", "--bytes", "1M"]);
    let (requests, seconds) = bench(&["--bs", "32k"]);
    assert!(requests * 32768.0 <= 1048576.0 * (seconds + 0.5), "{requests} in {seconds} s");

    ctl(&scene, &image, &["limits", "--bytes", "0"]);
    let (requests, seconds) = bench(&[]);
    assert!(
        requests / seconds > 2.0 * limited,
        "{requests} in {seconds} s, {limited} a second before"
    );
    blkback.end().unwrap();
    end(&scene, hypervisor);
}

#[test]
fn programs_start_a_hypervisor_where_there_is_none_and_it_ends_after_them() {
    // It is found beside the program that looks for it.
    build("hypervisor", "hypervisor", Build::Tests).unwrap();
    let scene = Scene::new("alone").unwrap();
    let image = image(&scene, "disk.img", &noise(1, MIB));
    let blkback = serve(&scene, &image, &[]);
    assert!(blkback.written().contains("started an embedded hypervisor"), "{}", blkback.written());
    let mut info = scene.program("blkfront", "blkfront").unwrap();
    info.args(["info", "--json"]);
    let output = to_its_end(info, PATIENCE).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("using the embedded hypervisor"), "{said}");
    blkback.end().unwrap();
    until("the hypervisor ends with the last domain", || {
        let output = scene.run("hypervisor", "hypervisor", ["list"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(!output.status.success() && said.contains("no hypervisor runs"))
    })
    .unwrap();
}
