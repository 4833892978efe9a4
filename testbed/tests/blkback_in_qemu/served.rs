//! An image that a blkback process serves, and may be killed and started again; machines that use it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::packages::{BUSYBOX, QEMU};
use testbed::programs::{Build, build};
use testbed::{skip, vm};

/// How long anything may take before a test gives it up.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct Served {
    program: PathBuf,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Served {
    pub(crate) fn new(size: &str, more: &[&str]) -> Self {
        let mut served = Self::prepare();
        served.start(&[&["--size", size], more].concat());
        served
    }

    /// Nothing is served yet.
    pub(crate) fn prepare() -> Self {
        let program = build("blkback", "blkback", Build::Tests).unwrap();
        Self { program, folder: tempfile::tempdir().unwrap(), process: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn start(&mut self, more: &[&str]) {
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

    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let _ = std::fs::remove_file(self.path("disk.sock"));
        let _ = std::fs::remove_file(self.path("ctl.sock"));
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub(crate) fn ctl(&self, what: &[&str]) -> Option<Value> {
        let mut command = Command::new(&self.program);
        command.args(["ctl", "--json", "--control"]).arg(self.path("ctl.sock")).args(what);
        let output = command.stderr(Stdio::null()).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// What was counted since the process was started.
    pub(crate) fn ever(&self) -> Value {
        self.ctl(&["counters"]).unwrap()["ever"].clone()
    }

    /// Waits until so many requests of a kind are done since the process was started.
    pub(crate) fn until_done(&self, kind: &str, count: u64) {
        until(kind, || {
            let counters = self.ctl(&["counters"])?;
            (counters["ever"][kind].as_u64()? >= count).then_some(())
        });
    }

    /// A machine that has this disk, and runs `script`.
    pub(crate) fn machine(&self, script: &str) -> vm::Machine {
        machine(&[self], script)
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

/// A machine that has these disks, the first one as `vda`, and runs `script`. They can be unplugged as `disk0` and so on.
pub(crate) fn machine(disks: &[&Served], script: &str) -> vm::Machine {
    let mut machine = vm::Machine::new(script);
    machine.modules =
        ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"].map(str::to_owned).to_vec();
    let memory = "memory-backend-memfd,id=ram,size=1024M,share=on".to_owned();
    let mut options = vec![("-object", memory), ("-machine", "pc,memory-backend=ram".to_owned())];
    for (n, disk) in disks.iter().enumerate() {
        let path = shown(&disk.path("disk.sock"));
        options.push(("-chardev", format!("socket,id=socket{n},path={path},reconnect=1")));
        let device = format!("vhost-user-blk-pci,id=disk{n},chardev=socket{n},num-queues=2");
        options.push(("-device", device));
    }
    for (option, value) in options {
        machine.arguments.extend([option.to_owned(), value]);
    }
    machine
}

pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn possible(test: &str) -> bool {
    skip::unless_installed(test, &[QEMU, BUSYBOX])
}
