//! `blkback ctl` against a daemon that serves a guest.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;

use hypervisor::store::{Store as _, Transaction};
use hypervisor::xenstore::Client;
use serde_json::Value;
use testbed::scene::{Process, Scene, until};

const MIB: u64 = 1 << 20;

struct Set {
    scene: Scene,
    hypervisor: Process,
    blkback: Process,
    image: String,
}

/// A hypervisor and a blkback that serves an image of 16 MiB.
fn set(more: &[&str]) -> Set {
    let scene = Scene::new("control").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let path = scene.folder().join("disk.img");
    File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    let image = path.display().to_string();
    let arguments = [&["--image", image.as_str()], more].concat();
    let mut blkback = scene.start("blkback", "blkback", arguments).unwrap();
    blkback.line_with("ready").unwrap();
    Set { scene, hypervisor, blkback, image }
}

impl Set {
    fn ctl(&self, arguments: &[&str]) -> String {
        self.scene.succeed("blkback", "blkback", [&["ctl"], arguments].concat()).unwrap()
    }

    fn asked(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ctl(&[arguments, &["--json"]].concat())).unwrap()
    }

    fn device(&self) -> Value {
        self.asked(&["list"])[0].clone()
    }

    /// A guest that keeps the disk busy until it is taken away or the time is over.
    fn guest(&self) -> Process {
        let arguments =
            ["bench", "--rw", "randrw", "--seconds", "600", "--range", "16M", "--depth", "8"];
        let guest = self.scene.start("blkfront", "blkfront", arguments).unwrap();
        until("the guest is served", || {
            Ok(self.asked(&["counters"])["total"]["reads"].as_u64().unwrap_or(0) > 100)
        })
        .unwrap();
        guest
    }

    fn end(self) {
        self.blkback.end().unwrap();
        self.hypervisor.end().unwrap();
    }
}

#[test]
fn a_disk_in_use_is_listed_counted_and_limited() {
    let set = set(&["--queues", "2"]);
    let device = set.device();
    assert_eq!(device["image"], set.image.as_str());
    assert_eq!(device["size"], 16 * MIB);
    assert_eq!(device["guest"], "guest");
    assert_eq!(device["guest_id"], Value::Null);
    assert!(set.ctl(&["list"]).contains("guest (awaited)"));

    let guest = set.guest();
    let device = set.device();
    assert_eq!(device["state"], "connected");
    assert_eq!(device["guest_state"], "connected");
    assert!(device["guest_id"].as_u64().is_some());
    assert_eq!(device["connections"], 1);
    assert_eq!(device["queues"], 1);
    assert!(set.ctl(&["list", "--image", &set.image]).contains("connected"));

    let rings = set.asked(&["rings"]);
    assert_eq!(rings.as_array().unwrap().len(), 1);
    let slots = rings[0]["slots"].as_u64().unwrap();
    assert!(slots.is_power_of_two() && slots >= 32, "{rings}");
    assert!(set.ctl(&["rings"]).contains("UNDER WAY"));
    assert!(set.ctl(&["counters"]).contains("bytes_written"));

    assert_eq!(set.device()["limits"]["iops"], Value::Null);
    let held = || set.asked(&["counters"])["total"]["held"].as_u64().unwrap();
    let limits = set.asked(&["limits", "--iops", "50", "--bytes", "1M"]);
    assert_eq!((limits["iops"].as_u64(), limits["bytes"].as_u64()), (Some(50), Some(MIB)));
    until("requests are held back", || Ok(held() > 0)).unwrap();
    // One at a time can be changed, and lifted while requests wait for it.
    let limits = set.asked(&["limits", "--iops", "0"]);
    assert_eq!((limits["iops"].as_u64(), limits["bytes"].as_u64()), (None, Some(MIB)));
    set.asked(&["limits", "--bytes", "0"]);
    let done = || set.asked(&["counters"])["total"]["reads"].as_u64().unwrap();
    let before = done();
    until("it goes on without limits", || Ok(done() > before + 500)).unwrap();
    drop(guest);
    until("the guest is gone", || Ok(set.device()["guest_id"].is_null())).unwrap();
    set.end();
}

#[test]
fn a_disk_grows_while_the_guest_uses_it() {
    let set = set(&[]);
    let mut guest = set.guest();
    let me = set.device()["guest_id"].as_u64().unwrap();
    let store = Client::connect(set.scene.place().join("xenstored.sock")).unwrap();
    let read =
        |path: &str| String::from_utf8(store.read(Transaction::NONE, path).unwrap()).unwrap();
    let back = read(&format!("/local/domain/{me}/device/vbd/51712/backend"));
    assert_eq!(read(&format!("{back}/sectors")), (16 * MIB / 512).to_string());

    assert_eq!(set.asked(&["resize", "24M"]), 24 * MIB);
    assert_eq!(read(&format!("{back}/sectors")), (24 * MIB / 512).to_string());
    assert_eq!(read(&format!("{back}/state")), "4");
    assert_eq!(set.device()["size"], 24 * MIB);
    // Grown by somebody else.
    File::options().write(true).open(&set.image).unwrap().set_len(32 * MIB).unwrap();
    assert!(set.ctl(&["resize"]).contains("32 MiB"));
    assert_eq!(read(&format!("{back}/sectors")), (32 * MIB / 512).to_string());
    for (size, words) in [("33000001", "not a multiple"), ("1M", "never shrunk")] {
        let output = set.scene.run("blkback", "blkback", ["ctl", "resize", size]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
    assert!(guest.runs(), "{}", guest.written());
    assert_eq!(set.device()["connections"], 1);
    drop(guest);
    set.end();
}

#[test]
fn a_disk_is_taken_away() {
    let mut set = set(&[]);
    let mut guest = set.guest();
    assert!(set.ctl(&["detach"]).contains("detached"));
    assert!(set.blkback.ended().unwrap().success());
    assert!(!guest.ended().unwrap().success());
    assert!(guest.written().contains("detached"), "{}", guest.written());
    set.hypervisor.end().unwrap();
}

#[test]
fn by_force_also_from_a_guest_that_does_not_answer() {
    let mut set = set(&[]);
    let guest = set.guest();
    guest.stop().unwrap();
    let me = set.device()["guest_id"].as_u64().unwrap();
    set.ctl(&["detach", "--force"]);
    assert!(set.blkback.ended().unwrap().success(), "{}", set.blkback.written());
    let store = Client::connect(set.scene.place().join("xenstored.sock")).unwrap();
    let left = store.list(Transaction::NONE, &format!("/local/domain/{me}/device/vbd"));
    assert!(left.is_ok_and(|left| left.is_empty()));
    drop(guest);
    set.hypervisor.end().unwrap();
}

#[test]
fn several_daemons_are_told_apart() {
    let set = set(&[]);
    let path = set.scene.folder().join("other.img");
    File::create(&path).unwrap().set_len(MIB).unwrap();
    let other = path.display().to_string();
    let arguments = ["--image", &other, "--vdev", "xvdb", "--domain", "nobody"];
    let mut second = set.scene.start("blkback", "blkback", arguments).unwrap();
    second.line_with("ready").unwrap();
    assert_eq!(set.asked(&["list"]).as_array().unwrap().len(), 2);
    let output = set.scene.run("blkback", "blkback", ["ctl", "rings"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("choose by --image") && said.contains(&other), "{said}");
    assert_eq!(set.asked(&["resize", "2M", "--image", &other]), 2 * MIB);
    // A killed daemon leaves its socket, which is passed over.
    second.kill().unwrap();
    assert_eq!(set.asked(&["list"]).as_array().unwrap().len(), 1);
    set.end();
}

#[test]
fn who_is_hostile_at_the_socket_harms_nobody() {
    let set = set(&[]);
    let guest = set.guest();
    let socket = set.scene.place().join("blkback-disk.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut kept = Vec::new();
    for number in 0..60_u32 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        match number % 4 {
            // The server hangs up where it has had enough.
            0 => drop(stream.write_all(&[b'{'; 20_000])),
            1 => {
                drop(stream.write_all(b"{\"command\":\"resize\",\"size\":18446744073709551615}\n"))
            }
            2 => drop(stream.write_all(b"\xff\xfe\x00\n\n\n{}\n")),
            _ => kept.push(stream),
        }
    }
    // Those that say nothing are heard no more after a while; until then there may be no room.
    until("it answers again", || {
        let mut stream = UnixStream::connect(&socket)?;
        if stream.write_all(b"{\"command\":\"list\"}\n").is_err() {
            return Ok(false);
        }
        let mut answer = [0; 10];
        Ok(stream.read_exact(&mut answer).is_ok() && answer.starts_with(b"{\"result\""))
    })
    .unwrap();
    drop(kept);
    let reads = || set.asked(&["counters"])["total"]["reads"].as_u64().unwrap();
    until("room came back", || {
        Ok(set.scene.run("blkback", "blkback", ["ctl", "rings"])?.status.success())
    })
    .unwrap();
    let before = reads();
    until("the guest goes on", || Ok(reads() > before)).unwrap();
    assert_eq!(set.device()["size"], 16 * MIB);
    drop(guest);
    set.end();
}

/// The daemon's stats so far, a JSON object each.
fn stats(set: &Set) -> Vec<Value> {
    let written = set.blkback.written();
    // The last line may still be under way.
    let whole = written.rfind('\n').map_or("", |end| &written[..end]);
    let lines = whole.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line.get("stats").cloned()).collect()
}

#[test]
fn stats_tell_each_second_what_was_done_in_it() {
    let set = set(&["--stats", "--json"]);
    let rate = |line: &Value, key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{line}"));
    // Nobody is there: nothing is done, and nothing can be said of how long it takes.
    until("a line of an idle disk", || Ok(!stats(&set).is_empty())).unwrap();
    let idle = stats(&set).remove(0);
    for key in ["iops", "reads", "writes", "read_mb", "write_mb", "depth", "errors"] {
        assert_eq!(rate(&idle, key), 0.0, "{key} in {idle}");
    }
    assert!(idle["p50_us"].is_null() && idle["p99_us"].is_null(), "{idle}");

    let guest = set.guest();
    let busy = || stats(&set).into_iter().filter(|line| rate(line, "iops") > 0.0);
    until("lines of a busy disk", || Ok(busy().count() >= 2)).unwrap();
    for line in busy() {
        let close = |one: f64, other: f64| (one - other).abs() <= 1e-6 * one.max(other);
        let (reads, writes) = (rate(&line, "reads"), rate(&line, "writes"));
        assert!(reads > 0.0 && writes > 0.0, "{line}");
        assert!(close(rate(&line, "iops"), reads + writes), "{line}");
        // Requests of 4 KiB, and megabytes of 10^6.
        assert!(close(rate(&line, "read_mb"), reads * 4096.0 / 1e6), "{line}");
        assert!(close(rate(&line, "write_mb"), writes * 4096.0 / 1e6), "{line}");
        let (half, most) = (rate(&line, "p50_us"), rate(&line, "p99_us"));
        assert!(0.0 < half && half <= most, "{line}");
        assert!(line["depth"].as_u64() <= Some(8), "more than the guest asks for: {line}");
        assert_eq!(rate(&line, "errors"), 0.0, "{line}");
    }
    // It is the rate that is told, not the sum: with the guest gone it comes down to nothing.
    drop(guest);
    until("the disk is idle again", || {
        Ok(stats(&set).last().is_some_and(|line| line["iops"] == 0.0 && line["depth"] == 0))
    })
    .unwrap();
    set.end();
}

#[test]
fn stats_for_people_are_whole_lines_where_there_is_no_terminal() {
    let mut set = set(&["--stats"]);
    let idle = set.blkback.line_with("IOPS").unwrap();
    assert!(idle.trim_start().starts_with("0 IOPS (0 r, 0 w)"), "{idle}");
    assert!(idle.ends_with("p50 - us  p99 - us  depth 0  errors 0"), "{idle}");
    let guest = set.guest();
    let busy = set.blkback.line_with("p50 <").unwrap();
    assert!(busy.contains("MB/s r") && busy.contains("p99 <"), "{busy}");
    assert!(!set.blkback.written().contains('\x1b'), "a terminal's codes in a file");
    drop(guest);
    set.end();
}
