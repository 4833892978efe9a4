//! A machine whose `blkback --watch` serves the disk that a toolstack gives to a guest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use hypervisor::DomId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::libxl::{Device, DiskSpec, Libxl};
use crate::scene::{Process, Scene, until};

/// The machine.
pub struct Watched {
    /// Where its programs live.
    pub scene: Scene,
    /// The watcher.
    pub watch: Process,
    /// The toolstack.
    pub libxl: Libxl,
    /// The watcher's domain.
    pub me: DomId,
    /// The disk's image.
    pub image: String,
    _hypervisor: Process,
}

impl Watched {
    /// One in `scene`, whose watcher has these further `options`, and an image of `size` bytes in `folder`.
    ///
    /// # Errors
    ///
    /// It does not become ready.
    pub fn new(scene: Scene, folder: &Path, size: u64, options: &[&str]) -> Result<Self> {
        let hypervisor = scene.hypervisor()?;
        let arguments = [&["--watch", "--queues", "2"], options].concat();
        let mut watch = scene.start("blkback", "blkback", arguments)?;
        watch.line_with("ready: watching")?;
        let libxl = Libxl::new(scene.place().join("xenstored.sock"))?;
        let me = libxl.domain("blkback")?;
        let path = folder.join("disk.img");
        File::create(&path)?.set_len(size)?;
        let image = path.display().to_string();
        Ok(Self { scene, watch, libxl, me, image, _hypervisor: hypervisor })
    }

    /// Gives the disk to the domain `guest`, once that is there.
    ///
    /// # Errors
    ///
    /// The backend does not take it.
    pub fn attach(&self) -> Result<Device> {
        let guest = self.libxl.domain("guest")?;
        self.libxl.attach(self.me, guest, &DiskSpec::new(&self.image))
    }

    /// A guest that does something by `blkfront`, and its disk.
    ///
    /// # Errors
    ///
    /// It cannot be had.
    pub fn guest(&self, arguments: &[&str]) -> Result<(Process, Device)> {
        let arguments = [&["--timeout", "110"], arguments].concat();
        let guest = self.scene.start("blkfront", "blkfront", arguments)?;
        Ok((guest, self.attach()?))
    }

    /// What `blkback ctl list` says of the one disk; null where nobody serves one now.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn device(&self) -> Result<Value> {
        Ok(self.ask("list")?.get(0).cloned().unwrap_or_default())
    }

    /// What `blkback ctl counters` says of the connection that is served; null where there is none.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn total(&self) -> Result<Value> {
        Ok(self.ask("counters")?.get("total").cloned().unwrap_or_default())
    }

    fn ask(&self, what: &str) -> Result<Value> {
        let said = self.scene.run("blkback", "blkback", ["ctl", what, "--json"])?;
        Ok(serde_json::from_slice(&said.stdout).unwrap_or_default())
    }

    /// Waits until the process that serves now has answered so many requests.
    ///
    /// # Errors
    ///
    /// It never does.
    pub fn busy(&self, least: u64) -> Result<()> {
        until("the guest is served", || {
            let total = self.total()?;
            let count = |name: &str| total.get(name).and_then(Value::as_u64).unwrap_or(0);
            Ok(count("reads").saturating_add(count("writes")) >= least)
        })
    }

    /// Waits until requests are held because of `errno`; says what is known of the disk then.
    ///
    /// # Errors
    ///
    /// They never are, or because of another.
    pub fn held(&self, errno: i32) -> Result<Value> {
        let mut device = Value::Null;
        until("something is held", || {
            device = self.device()?;
            Ok(device.pointer("/held/requests").and_then(Value::as_u64) > Some(0))
        })?;
        ensure!(device.pointer("/held/errno") == Some(&errno.into()), "{device}");
        Ok(device)
    }

    /// Has what is held tried again; what `blkback` says to that, or why not.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn resume(&self) -> Result<Result<String, String>> {
        let said = self.scene.run("blkback", "blkback", ["ctl", "resume"])?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(if said.status.success() { Ok(text(&said.stdout)) } else { Err(text(&said.stderr)) })
    }

    /// A file of so many bytes of a pattern, for a guest to write.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn pattern(&self, bytes: u64) -> Result<String> {
        let words = (0..bytes.div_ceil(8)).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let path = self.scene.folder().join("data");
        fs::write(&path, words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;
        Ok(path.display().to_string())
    }

    /// Whether the image begins with the pattern that was made last.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn is_whole(&self) -> Result<bool> {
        let wanted = fs::read(self.scene.folder().join("data"))?;
        let mut found = vec![0; wanted.len()];
        File::open(&self.image)?.read_exact_at(&mut found, 0)?;
        Ok(found == wanted)
    }

    /// The process that serves the disk.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn pid(&self) -> Result<i64> {
        let device = self.device()?;
        device.get("pid").and_then(Value::as_i64).context("somebody serves")
    }

    /// Kills the process `pid`.
    ///
    /// # Errors
    ///
    /// It is no more.
    pub fn kill(&self, pid: i64) -> Result<()> {
        Ok(kill(Pid::from_raw(pid.try_into()?), Signal::SIGKILL)?)
    }

    /// Waits until another process than `pid` serves, of which `holds`.
    ///
    /// # Errors
    ///
    /// It never does.
    pub fn another(&self, pid: i64, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut device = Value::Null;
        until("another process serves", || {
            device = self.device()?;
            let other = device.get("pid").and_then(Value::as_i64).is_some_and(|now| now != pid);
            Ok(other && holds(&device))
        })?;
        Ok(device)
    }

    /// Takes the disk away, as of a guest that is no more, and ends the watcher.
    ///
    /// # Errors
    ///
    /// They do not end as they should.
    pub fn end(self, disk: &Device) -> Result<()> {
        self.libxl.destroy(disk)?;
        self.watch.end().map(drop)
    }
}
