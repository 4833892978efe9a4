//! The machine: QEMU, told to boot Xen with Dom0.
//!
//! Before: [`super::bed`] made the images. Next: [`mod@super::run`] reads what comes out. The first serial port is
//! Xen's console, with Dom0's kernel on it, and goes to a file; the second is the line between Dom0's own
//! init and us. Paths are given relative to the run's folder: Xen's modules are named in a list that
//! is parted by commas and spaces.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::bed::Bed;
use crate::packages::{self, QEMU};
use crate::vm::Archive;

/// How QEMU emulates several CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Threads {
    /// By one thread, taking turns. Guests in hardware containers (PVH, HVM) need it: with several
    /// they die of triple faults now and then.
    Single,
    /// By a thread each.
    Multi,
}

impl FromStr for Threads {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "single" => Ok(Self::Single),
            "multi" => Ok(Self::Multi),
            _ => bail!("neither 'single' nor 'multi'"),
        }
    }
}

/// What the machine is like.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Use the processor's own virtualisation, which must be able to nest.
    pub kvm: bool,
    /// The machine's memory; Dom0 has half of it, at most 2 GiB.
    pub memory_mib: u32,
    /// Its CPUs.
    pub cpus: u32,
    /// How they are emulated.
    pub threads: Threads,
    /// Where the static programs lie that go into it; without, they are built.
    pub programs: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { kvm: false, memory_mib: 4096, cpus: 2, threads: Threads::Multi, programs: None }
    }
}

/// What emulated CPUs lack: with SMAP Dom0 dies of its first page fault, with AVX programs in it misbehave.
const EMULATED_CPU: &str = "max,+svm,-smap,-smep,-rdtscp,-avx,-avx2,-xsave";

/// Puts into the run's folder what QEMU reads from there.
///
/// # Errors
///
/// Writing fails.
pub(super) fn lay_out(bed: &Bed, folder: &Path) -> Result<()> {
    for name in ["xen", "vmlinuz", "dom0.img"] {
        symlink(bed.file(name), folder.join(name)).with_context(|| format!("link {name}"))?;
    }
    let mut first = Archive::new();
    first.file("init", 0o755, include_bytes!("../../dom0/initramfs"))?;
    let mut both = fs::read(bed.file("initramfs"))?;
    first.write(&mut both)?;
    fs::write(folder.join("initramfs"), both)?;
    Ok(())
}

/// QEMU on what lies in `folder`, lacking only where the second serial port goes. `words` are for
/// Dom0's kernel command line.
///
/// # Errors
///
/// QEMU is not installed.
pub(super) fn qemu(options: &Options, folder: &Path, words: &str) -> Result<Command> {
    packages::ensure(&[QEMU])?;
    let program = packages::find(QEMU).context("qemu is installed")?;
    // A machine without the one who watches it would run for ever.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL"]).arg(program);
    qemu.current_dir(folder).env("TMPDIR", folder);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    match options.kvm {
        true => qemu.args(["-accel", "kvm", "-cpu", "host"]),
        false => {
            let thread = match options.threads {
                Threads::Single => "single",
                Threads::Multi => "multi",
            };
            qemu.args(["-accel", &format!("tcg,thread={thread}"), "-cpu", EMULATED_CPU])
        }
    };
    let dom0 = (options.memory_mib / 2).min(2048);
    let xen = format!("console=com1 com1=115200,8n1 dom0_mem={dom0}M,max:{dom0}M bootscrub=0");
    let linux = format!("console=hvc0 quiet panic=1 {words}").replace(',', ",,");
    qemu.args(["-m", &options.memory_mib.to_string(), "-smp", &options.cpus.to_string()])
        .args(["-kernel", "xen", "-append", &xen])
        .args(["-initrd", &format!("vmlinuz {linux},initramfs")])
        .args(["-chardev", "file,id=console,path=logs/console.log,append=on"])
        .args(["-serial", "chardev:console"]);
    for (image, more) in
        [("dom0.img", "snapshot=on"), ("work.img", "discard=unmap,cache.no-flush=on")]
    {
        qemu.args(["-drive", &format!("file={image},format=raw,if=virtio,{more}")]);
    }
    for (name, more) in [("bed", ",readonly=on"), ("logs", "")] {
        let folder = format!("local,id={name},path={name},security_model=none{more}");
        qemu.args(["-fsdev", &folder])
            .args(["-device", &format!("virtio-9p-pci,fsdev={name},mount_tag={name}")]);
    }
    Ok(qemu)
}
