//! Daemons and guests that come, go, are killed and come back, as the processes that a user runs.

use std::fs::File;

use hypervisor::store::{Store as _, StoreError, Transaction};
use hypervisor::xenstore::Client;
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::scene::{Process, Scene, until};

const MIB: u64 = 1 << 20;

fn image(scene: &Scene, name: &str) -> String {
    let path = scene.folder().join(name);
    File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    path.display().to_string()
}

fn serve(scene: &Scene, arguments: &[&str]) -> Process {
    let mut blkback = scene.start("blkback", "blkback", arguments).unwrap();
    blkback.line_with("ready").unwrap();
    blkback
}

fn ctl(scene: &Scene, what: &str) -> Value {
    let said = scene.succeed("blkback", "blkback", ["ctl", what, "--json"]).unwrap();
    serde_json::from_str(&said).unwrap()
}

/// Waits until the one daemon has served so many requests to the guest that is connected.
fn busy(scene: &Scene, requests: u64) {
    until("the guest is served", || Ok(served(scene)? >= requests)).unwrap();
}

/// Reads that the one daemon has served to the guest that is connected.
fn served(scene: &Scene) -> anyhow::Result<u64> {
    let output = scene.run("blkback", "blkback", ["ctl", "counters", "--json"])?;
    let counters: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(counters["total"]["reads"].as_u64().unwrap_or(0))
}

/// Every device directory that is left in the store.
fn devices(scene: &Scene) -> Vec<String> {
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
    }
    found
}

#[test]
fn guests_come_and_go_and_nothing_grows() {
    let scene = Scene::new("life").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img");
    let blkback = serve(&scene, &["--image", &image]);
    let mut samples = Vec::new();
    for round in 0..16 {
        if round % 4 == 3 {
            let guest = scene.start("blkfront", "blkfront", ["bench", "--seconds", "600"]).unwrap();
            busy(&scene, 50);
            guest.kill().unwrap();
        } else {
            scene.succeed("blkfront", "blkfront", ["bench", "--seconds", "0.1"]).unwrap();
        }
        until("the guest is gone", || Ok(ctl(&scene, "list")[0]["guest_id"].is_null())).unwrap();
        // The least of several looks: a descriptor may be open for a moment at any of them.
        let mut least = (usize::MAX, u64::MAX);
        for _ in 0..10 {
            let now = (blkback.descriptors().unwrap(), blkback.private_kib().unwrap());
            least = (least.0.min(now.0), least.1.min(now.1));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        samples.push(least);
    }
    let (early, late) = samples.split_at(samples.len() / 2);
    let descriptors = |half: &[(usize, u64)]| half.iter().map(|s| s.0).min().unwrap();
    let memory = |half: &[(usize, u64)]| half.iter().map(|s| s.1).min().unwrap();
    assert!(descriptors(late) <= descriptors(early), "{samples:?}");
    assert!(memory(late) <= memory(early) + 4096, "{samples:?}");
    let device = ctl(&scene, "list")[0].clone();
    assert_eq!(device["connections"], 16);
    assert_eq!(device["fault"], Value::Null);
    blkback.end().unwrap();
    assert_eq!(devices(&scene), Vec::<String>::new());
    hypervisor.end().unwrap();
}

#[test]
fn sigterm_under_load_answers_what_is_under_way_and_leaves_the_store_clean() {
    let scene = Scene::new("term").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img");
    let blkback = serve(&scene, &["--image", &image]);
    let mut guest = scene
        .start("blkfront", "blkfront", ["bench", "--rw", "randrw", "--seconds", "600"])
        .unwrap();
    busy(&scene, 200);
    let said = blkback.end().unwrap();
    assert!(!said.contains("did not let go"), "{said}");
    assert!(!guest.ended().unwrap().success());
    assert!(guest.written().contains("detached"), "{}", guest.written());
    assert_eq!(devices(&scene), Vec::<String>::new());
    // The image is free for the next.
    serve(&scene, &["--image", &image]).end().unwrap();
    hypervisor.end().unwrap();
}

#[test]
fn a_second_sigterm_does_not_wait_for_a_guest_that_does_not_answer() {
    let scene = Scene::new("term2").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img");
    let mut blkback = serve(&scene, &["--image", &image]);
    let guest = scene.start("blkfront", "blkfront", ["bench", "--seconds", "600"]).unwrap();
    busy(&scene, 50);
    guest.stop().unwrap();
    blkback.signal(Signal::SIGTERM).unwrap();
    // The second is one of its own only after the first was taken.
    until("it asks the guest", || Ok(ctl(&scene, "list")[0]["state"] == "closing")).unwrap();
    blkback.signal(Signal::SIGTERM).unwrap();
    assert!(blkback.ended().unwrap().success(), "{}", blkback.written());
    assert_eq!(devices(&scene), Vec::<String>::new());
    drop(guest);
    hypervisor.end().unwrap();
}

#[test]
fn a_backend_that_is_killed_and_started_again_is_a_pause() {
    let scene = Scene::new("kill").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img");
    let mut blkback = serve(&scene, &["--image", &image]);
    // Where the machine is so slow that the guest is done before the last round, that round is left
    // out.
    let arguments = [
        "bench",
        "--rw",
        "randrw",
        "--verify",
        "--seconds",
        "20",
        "--range",
        "16M",
        "--depth",
        "16",
    ];
    let mut guest = scene.start("blkfront", "blkfront", arguments).unwrap();
    for _ in 0..3 {
        until("the guest is served or done", || Ok(!guest.runs() || served(&scene)? >= 100))
            .unwrap();
        if !guest.runs() {
            break;
        }
        blkback.kill().unwrap();
        blkback = serve(&scene, &["--image", &image]);
    }
    let status = guest.ended().unwrap();
    assert!(status.success(), "{}", guest.written());
    assert!(guest.written().contains("all as written"), "{}", guest.written());
    blkback.end().unwrap();
    assert_eq!(devices(&scene), Vec::<String>::new());
    hypervisor.end().unwrap();
}

#[test]
fn without_its_hypervisor_it_ends_and_says_why() {
    let scene = Scene::new("alone").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = image(&scene, "disk.img");
    let mut blkback = serve(&scene, &["--image", &image]);
    let guest = scene.start("blkfront", "blkfront", ["bench", "--seconds", "600"]).unwrap();
    busy(&scene, 50);
    hypervisor.kill().unwrap();
    let status = blkback.ended().unwrap();
    assert_eq!(status.code(), Some(1), "{}", blkback.written());
    assert!(blkback.written().contains("blkback: "), "{}", blkback.written());
    assert!(!blkback.written().contains("panicked"), "{}", blkback.written());
    drop(guest);
}

#[test]
fn one_guest_has_several_disks() {
    let scene = Scene::new("disks").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let (first, second) = (image(&scene, "a.img"), image(&scene, "b.img"));
    let one = serve(&scene, &["--image", &first]);
    let two = serve(&scene, &["--image", &second, "--vdev", "xvdb", "--readonly"]);
    // A third of a name that is taken is refused as soon as the guest is there.
    let third = image(&scene, "c.img");
    let guest = scene
        .start("blkfront", "blkfront", ["bench", "--vdev", "xvda", "--seconds", "600"])
        .unwrap();
    until("both are served", || {
        let list = ctl(&scene, "list");
        Ok(list[0]["guest_state"] == "connected" && !list[1]["guest_id"].is_null())
    })
    .unwrap();
    let output = scene.run("blkback", "blkback", ["--image", &third, "--vdev", "xvdb"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("--vdev 'xvdb'") && said.contains("serves a disk of that name"),
        "{said}"
    );
    drop(guest);
    one.end().unwrap();
    two.end().unwrap();
    hypervisor.end().unwrap();
}
