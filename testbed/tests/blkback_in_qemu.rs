//! blkback over vhost-user: a stock kernel's virtio driver in QEMU, and QEMU's own end of the protocol.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::packages::{BUSYBOX, QEMU};
use testbed::programs::{Build, build};
use testbed::{skip, vm};

/// How long anything may take before a test gives it up.
const PATIENCE: Duration = Duration::from_secs(300);

/// An image that a blkback process serves, and may be killed and started again.
struct Served {
    program: PathBuf,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Served {
    fn new(size: &str, more: &[&str]) -> Self {
        let program = build("blkback", "blkback", Build::Tests).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut served = Self { program, folder, process: None };
        served.start(&[&["--size", size], more].concat());
        served
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&mut self, more: &[&str]) {
        let mut command = Command::new(&self.program);
        command
            .arg("--image")
            .arg(self.path("disk.img"))
            .arg("--vhost-user")
            .arg(self.path("disk.sock"))
            .arg("--control")
            .arg(self.path("ctl.sock"))
            .args(["--serial", "TESTDISK"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        until("blkback listens", || self.path("disk.sock").exists().then_some(()));
    }

    fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let _ = std::fs::remove_file(self.path("disk.sock"));
        let _ = std::fs::remove_file(self.path("ctl.sock"));
    }

    fn ctl(&self, what: &[&str]) -> Option<Value> {
        let mut command = Command::new(&self.program);
        command.args(["ctl", "--json", "--control"]).arg(self.path("ctl.sock")).args(what);
        let output = command.stderr(Stdio::null()).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until so many requests of a kind are done since the process was started.
    fn until_done(&self, kind: &str, count: u64) {
        until(kind, || {
            let counters = self.ctl(&["counters"])?;
            (counters["ever"][kind].as_u64()? >= count).then_some(())
        });
    }

    /// A machine that has this disk, and runs `script`.
    fn machine(&self, script: &str) -> vm::Machine {
        let mut machine = vm::Machine::new(script);
        machine.modules =
            ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"].map(str::to_owned).to_vec();
        let memory = "memory-backend-memfd,id=ram,size=1024M,share=on".to_owned();
        let socket = format!("socket,id=disk,path={},reconnect=1", shown(&self.path("disk.sock")));
        let device = "vhost-user-blk-pci,chardev=disk,num-queues=2".to_owned();
        for (option, value) in [
            ("-object", memory),
            ("-machine", "q35,memory-backend=ram".to_owned()),
            ("-chardev", socket),
            ("-device", device),
        ] {
            machine.arguments.extend([option.to_owned(), value]);
        }
        machine
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn possible(test: &str) -> bool {
    skip::unless_installed(test, &[QEMU, BUSYBOX])
}

#[test]
fn a_stock_kernel_uses_the_disk_and_trims_it() {
    if !possible("a virtio disk in QEMU") {
        return;
    }
    let served = Served::new("256M", &[]);
    let script = r#"
cd /sys/block/vda
echo "sectors: $(cat size)"
echo "serial: $(cat serial)"
echo "queues: $(ls mq | wc -l)"
echo "discard: $(cat queue/discard_max_bytes)"
echo "cache: $(cat queue/write_cache)"
cd /
mke2fs -F /dev/vda >/dev/null
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/a bs=1M count=48 2>/dev/null
before=$(sha256sum </mnt/a)
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
[ "$(sha256sum </mnt/a)" = "$before" ] && echo "the same again"
rm /mnt/a
sync
fstrim /mnt
umount /mnt
echo "refused: $(dd if=/dev/vda bs=512 skip=9999999 count=1 2>/dev/null | wc -c)"
"#;
    let printed = served.machine(script).run().unwrap();
    for line in ["sectors: 524288", "serial: TESTDISK", "queues: 2", "cache: write back"] {
        assert!(printed.lines().any(|said| said == line), "no '{line}': {printed}");
    }
    assert!(printed.contains("the same again"), "{printed}");
    let blocks = std::fs::metadata(served.path("disk.img")).unwrap().blocks();
    assert!(blocks * 512 < 24 << 20, "the image still has {blocks} blocks: {printed}");
    let counters = served.ctl(&["counters"]).unwrap();
    let ever = &counters["ever"];
    assert!(ever["writes"].as_u64().unwrap() > 40 && ever["flushes"].as_u64().unwrap() > 0);
    assert!(ever["discards"].as_u64().unwrap() > 0, "{ever}");
    assert_eq!(ever["medium_errors"].as_u64(), Some(0), "{ever}");
}

#[test]
fn a_guest_sees_a_pause_and_no_error_when_the_backend_is_killed() {
    if !possible("a backend that is killed under QEMU") {
        return;
    }
    // So few a second, that there always are some under way.
    let limit = ["--limit-iops", "600"];
    let mut served = Served::new("256M", &limit);
    let script = r#"
dd if=/dev/urandom of=/tmp/noise bs=1M count=16 2>/dev/null
sum=$(sha256sum </tmp/noise)
for round in 1 2; do
    for part in 0 1 2 3; do
        dd if=/tmp/noise of=/dev/vda bs=64k seek=$((part * 256)) oflag=direct 2>/dev/null &
    done
    wait
    for part in 0 1 2 3; do
        got=$(dd if=/dev/vda bs=64k skip=$((part * 256)) count=256 iflag=direct 2>/dev/null | sha256sum)
        [ "$got" = "$sum" ] || { echo "part $part of round $round differs"; exit 1; }
    done
done
echo "all rounds are over"
dmesg | grep -i 'error' || true
"#;
    let machine = served.machine(script);
    let running = std::thread::spawn(move || machine.run());
    for _ in 0..3 {
        served.until_done("writes", 100);
        served.kill();
        std::thread::sleep(Duration::from_millis(200));
        served.start(&limit);
    }
    let printed = running.join().unwrap().unwrap();
    assert!(printed.contains("all rounds are over"), "{printed}");
    assert!(!printed.contains("I/O error"), "{printed}");
    let counters = served.ctl(&["counters"]).unwrap();
    assert_eq!(counters["ever"]["medium_errors"].as_u64(), Some(0), "{counters}");
}

#[test]
fn a_disk_grows_while_the_guest_uses_it() {
    if !possible("a disk that grows under QEMU") {
        return;
    }
    let served = Served::new("64M", &[]);
    let script = r#"
echo "sectors: $(cat /sys/block/vda/size)"
dd if=/dev/vda of=/dev/null bs=1M count=8 2>/dev/null
n=0
until [ "$(cat /sys/block/vda/size)" = 262144 ]; do
    n=$((n + 1)); [ $n -lt 120 ] || { echo "never grew"; exit 1; }
    sleep 1
done
dd if=/dev/urandom of=/dev/vda bs=1M seek=100 count=4 oflag=direct 2>/dev/null && echo "written beyond"
"#;
    let machine = served.machine(script);
    let running = std::thread::spawn(move || machine.run());
    served.until_done("reads", 8);
    served.ctl(&["resize", "128M"]).expect("grows");
    let printed = running.join().unwrap().unwrap();
    assert!(printed.contains("sectors: 131072"), "{printed}");
    assert!(printed.contains("written beyond"), "{printed}");
}
