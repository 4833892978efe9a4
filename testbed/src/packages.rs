//! Programs that come from Debian: found, installed when we may, or else asked for by name.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// A program and the Debian package that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// What is run.
    pub name: &'static str,
    /// What holds it.
    pub package: &'static str,
}

/// fio, which drives a disk and verifies what it reads.
pub const FIO: Program = Program { name: "fio", package: "fio" };
/// Converts and compares disk images.
pub const QEMU_IMG: Program = Program { name: "qemu-img", package: "qemu-utils" };
/// Copies between NBD exports and files.
pub const NBDCOPY: Program = Program { name: "nbdcopy", package: "libnbd-bin" };
/// Makes ext4 file systems.
pub const MKE2FS: Program = Program { name: "mke2fs", package: "e2fsprogs" };
/// Discards or zeroes ranges of a disk.
pub const BLKDISCARD: Program = Program { name: "blkdiscard", package: "util-linux" };
/// The machine emulator in which guests and whole hosts run.
pub const QEMU: Program = Program { name: "qemu-system-x86_64", package: "qemu-system-x86" };
/// Serves disks over vhost-user.
pub const QEMU_STORAGE_DAEMON: Program =
    Program { name: "qemu-storage-daemon", package: "qemu-system-common" };
/// Serves disks over NBD.
pub const QEMU_NBD: Program = Program { name: "qemu-nbd", package: "qemu-utils" };
/// Serves disks over NBD, too.
pub const NBDKIT: Program = Program { name: "nbdkit", package: "nbdkit" };
/// A statically linked set of small programs, for guests without a distribution.
pub const BUSYBOX: Program = Program { name: "busybox", package: "busybox-static" };
/// The stock clients of the store.
pub const XENSTORE: Program = Program { name: "xenstore-ls", package: "xenstore-utils" };

/// Measures TCP and UDP between two ends.
pub const IPERF3: Program = Program { name: "iperf3", package: "iperf3" };
/// Asks whether somebody is there.
pub const PING: Program = Program { name: "ping", package: "iputils-ping" };
/// Sends what no ordinary program sends.
pub const PYTHON: Program = Program { name: "python3", package: "python3" };
/// Changes what a process may use.
pub const PRLIMIT: Program = Program { name: "prlimit", package: "util-linux" };
/// Sets up network interfaces.
pub const IP: Program = Program { name: "ip", package: "iproute2" };

/// A program that is not there and could not be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The programs that are missing.
    pub programs: Vec<Program>,
    /// Why they were not installed.
    pub why: String,
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.programs.iter().map(|program| program.name).collect();
        let packages: Vec<&str> = self.programs.iter().map(|program| program.package).collect();
        write!(
            f,
            "missing: {} ({}); install with: apt-get install -y --no-install-recommends {}",
            names.join(", "),
            self.why,
            packages.join(" ")
        )
    }
}

impl std::error::Error for Absent {}

/// Where `program` is, if it is on this machine.
#[must_use]
pub fn find(program: Program) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Root's tools are not on everybody's path.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(program.name))
        .find(|candidate| candidate.is_file())
}

/// Makes sure that all of `programs` are there, installing what is missing when run as root.
///
/// # Errors
///
/// [`Absent`] names what is missing and the command that installs it.
pub fn ensure(programs: &[Program]) -> Result<(), Absent> {
    // One installation at a time within this process; apt itself waits for other processes.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let missing: Vec<Program> =
        programs.iter().copied().filter(|program| find(*program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Absent { programs: missing, why: "only root can install them".into() });
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(Absent { programs: missing, why: "there is no apt-get here".into() });
    }
    let packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    eprintln!("installing {}", packages.join(" "));
    let installed = apt(&packages) || (update() && apt(&packages));
    let missing: Vec<Program> =
        missing.into_iter().filter(|program| find(*program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = if installed { "the package does not hold it" } else { "apt-get failed" };
    Err(Absent { programs: missing, why: why.into() })
}

fn apt(packages: &[&str]) -> bool {
    quiet(
        Command::new("apt-get")
            .args(["-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends"])
            .args(packages),
    )
}

fn update() -> bool {
    quiet(Command::new("apt-get").arg("update"))
}

fn quiet(command: &mut Command) -> bool {
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .is_ok_and(|status| status.success())
}
