//! A whole Linux machine in QEMU, for what a test may not do to the machine it runs on.
//!
//! A stock Debian kernel boots into a memory file system that holds a static shell, the programs
//! that were asked for, and a script. What the script prints comes back line by line. The machine is
//! emulated in software, so it runs anywhere and is slow; nothing in it is measured.

mod initramfs;
mod kernel;
mod libraries;
mod modinfo;
mod root;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::packages::{self, BUSYBOX, QEMU};
use crate::programs::workspace;
use crate::scene::to_its_end;

pub use initramfs::Archive;
pub use kernel::Kernel;
pub use libraries::with_libraries;

/// What the script's last line says when all went well.
const WELL: &str = "domkit-vm: ended well";
const BADLY: &str = "domkit-vm: ended with";

/// Where kernels are kept between runs.
#[must_use]
pub fn cache() -> PathBuf {
    workspace().join("target/testbed")
}

/// A machine that runs one script and is then switched off.
#[derive(Debug)]
pub struct Machine {
    /// A shell script (busybox's), run as root with `set -e`, with /proc, /sys and /dev mounted.
    pub script: String,
    /// Static programs and other files: the path in the machine, and the file's own here.
    pub files: Vec<(String, PathBuf)>,
    /// Kernel modules that are loaded before the script runs, by their names.
    pub modules: Vec<String>,
    /// The device that holds its root file system ([`make_root`](Self::make_root)), as `/dev/vda`: the
    /// script and the programs are that one's. Without one, all lies in memory.
    pub root: Option<String>,
    /// What QEMU is told beside that: devices, for one.
    pub arguments: Vec<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// How long all of it may take.
    pub limit: Duration,
}

impl Machine {
    /// A machine with two CPUs and 1 GiB that runs `script`.
    #[must_use]
    pub fn new(script: impl Into<String>) -> Self {
        Self {
            script: script.into(),
            files: Vec::new(),
            modules: Vec::new(),
            root: None,
            arguments: Vec::new(),
            cpus: 2,
            memory_mib: 1024,
            limit: Duration::from_secs(600),
        }
    }

    /// Puts its memory where devices of other processes reach it.
    pub fn share_memory(&mut self) {
        let memory = format!("memory-backend-memfd,id=ram,size={}M,share=on", self.memory_mib);
        let arguments = ["-object", &memory, "-machine", "q35,memory-backend=ram"];
        self.arguments.extend(arguments.map(str::to_owned));
    }

    /// Boots it, runs the script, and answers what it printed.
    ///
    /// # Errors
    ///
    /// Something to build or run it with is missing, it took too long, or the script failed; the
    /// error then holds what it printed.
    pub fn run(&self) -> Result<String> {
        packages::ensure(&[QEMU, BUSYBOX])?;
        let folder = tempfile::Builder::new().prefix("domkit-vm-").tempdir()?;
        let (kernel, initramfs) = self.boot_files(folder.path())?;
        let mut qemu = Command::new(packages::find(QEMU).context("qemu is installed")?);
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .args(&self.arguments);
        let output = to_its_end(qemu, self.limit).context("a machine in QEMU")?;
        let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        if !console.lines().any(|line| line == WELL) {
            let wrote = String::from_utf8_lossy(&output.stderr);
            bail!("the machine's script failed ({}):\n{console}\n{wrote}", output.status);
        }
        Ok(console
            .lines()
            .filter(|line| *line != WELL)
            .fold(String::new(), |all, line| all + line + "\n"))
    }

    /// What it boots with: the kernel, and its first file system, which is written into `folder`.
    ///
    /// # Errors
    ///
    /// Something to make them of is missing.
    pub fn boot_files(&self, folder: &Path) -> Result<(PathBuf, PathBuf)> {
        packages::ensure(&[BUSYBOX])?;
        let kernel = Kernel::of_debian(&cache())?;
        let initramfs = folder.join("initramfs");
        self.pack(&kernel, &initramfs)?;
        Ok((kernel.image().to_owned(), initramfs))
    }

    /// The shell, the files and the script, by their places.
    fn content(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut content = vec![shell()?];
        for (path, from) in &self.files {
            let from_shown = from.display();
            let bytes = fs::read(from).with_context(|| format!("read {from_shown}"))?;
            content.push((path.trim_start_matches('/').to_owned(), bytes));
        }
        content.push(("script".to_owned(), self.script.clone().into_bytes()));
        Ok(content)
    }

    fn pack(&self, kernel: &Kernel, into: &Path) -> Result<()> {
        let mut archive = Archive::new();
        for folder in FOLDERS {
            archive.folder(folder);
        }
        let content = match self.root {
            None => self.content()?,
            Some(_) => vec![shell()?],
        };
        for (path, bytes) in content {
            archive.file(&path, 0o755, &bytes)?;
        }
        let mut load = String::new();
        for module in kernel.with_dependencies(&self.modules)? {
            let name = module.file_name().context("a module has a name")?.to_string_lossy();
            archive.file(&format!("modules/{name}"), 0o644, &fs::read(&module)?)?;
            load += &format!("insmod /modules/{name}\n");
        }
        archive.file("init", 0o755, init(&load, self.root.as_deref()).as_bytes())?;
        archive.device("dev/console", 0o600, 5, 1);
        let file = File::create(into)?;
        archive.write(file)
    }
}

/// Folders of the root file system that have to be there.
const FOLDERS: [&str; 8] = ["bin", "dev", "proc", "sys", "tmp", "run", "modules", "root"];

/// The shell, and its place.
fn shell() -> Result<(String, Vec<u8>)> {
    let busybox = packages::find(BUSYBOX).context("busybox is installed")?;
    Ok(("bin/busybox".to_owned(), fs::read(busybox)?))
}

/// The first program: sets the machine up, runs the script, tells how it ended, and switches off. Where there is
/// a `root`, that is for the first program there to do.
fn init(load: &str, root: Option<&str>) -> String {
    if let Some(root) = root {
        return format!(
            "#!/bin/busybox sh\n\
             /bin/busybox --install -s /bin\n\
             export PATH=/bin HOME=/\n\
             mount -t proc proc /proc\n\
             mount -t devtmpfs dev /dev\n\
             {load}\
             mount -t ext4 {root} /root && umount /proc && exec switch_root /root /init\n\
             echo '{BADLY} no root'\n\
             poweroff -f\n"
        );
    }
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin HOME=/\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mkdir -p /dev/pts /dev/shm\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t tmpfs run /run\n\
         mount -t tmpfs shm /dev/shm\n\
         ip link set lo up 2>/dev/null\n\
         {load}\
         sh -e /script </dev/null 2>&1\n\
         code=$?\n\
         echo\n\
         if [ $code = 0 ]; then echo '{WELL}'; else echo \"{BADLY} $code\"; fi\n\
         sync\n\
         poweroff -f\n"
    )
}

/// Runs `command`, which must succeed, in `folder`; answers its standard output.
fn succeed(command: &mut Command, folder: &Path) -> Result<String> {
    let output = command
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        let wrote = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{wrote}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
