//! A bed: everything that a boot needs, made once of Debian's packages and kept.
//!
//! Before: [`super::root`] unpacked the packages. Next: [`super::boot`] starts QEMU on it.
//!
//! | file | what |
//! | --- | --- |
//! | `xen`, `vmlinuz` | what QEMU boots |
//! | `initramfs` | Dom0's busybox and modules, lacking only the first program |
//! | `dom0.img` | Dom0's root, ext4; never written, each boot writes into a layer of its own |
//! | `packages` | the packages in it |
//!
//! In `dom0.img` there is `/boot/guest.cpio`: the guests' programs and modules, lacking only what runs
//! in them, which is appended in Dom0 (a kernel unpacks one archive after another).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::root::{Root, succeed};
use super::{cache, debs, recipe};
use crate::vm::{Archive, Kernel};

/// A change to how a bed is made gets another number.
const LAYOUT: &str = "1";
/// What Dom0's root image can hold; it is sparse.
const IMAGE_SIZE: &str = "3G";

/// A bed that is there, and stays as long as this value.
#[derive(Debug)]
pub struct Bed {
    folder: PathBuf,
    _in_use: Flock<File>,
}

impl Bed {
    /// The bed in `cache`, made if there is none. With `refresh`, one of the newest packages; with `release`, one
    /// of that release of Debian, which has a cache of its own in there.
    ///
    /// # Errors
    ///
    /// A package cannot be had, or an image not be made.
    pub fn prepare(
        cache: &Path,
        release: Option<&str>,
        refresh: bool,
        say: &dyn Fn(&str),
    ) -> Result<Self> {
        let cache = &release.map_or_else(|| cache.to_owned(), |release| cache.join(release));
        fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
        // The root's own loader is given absolute paths.
        let cache = &fs::canonicalize(cache)?;
        let pointer = cache.join(format!("bed-of-{}", recipe_key()));
        let _one = cache::lock(&cache.join("prepare.lock"), FlockArg::LockExclusive)?;
        if !refresh && let Some(bed) = Self::at(cache, &pointer)? {
            return Ok(bed);
        }
        let debs = debs::gather(cache, release, say)?;
        let names: Vec<_> = debs.iter().filter_map(|deb| deb.file_name()?.to_str()).collect();
        let key = cache::key([recipe_key().as_str()].into_iter().chain(names.iter().copied()));
        let folder = cache.join(format!("bed-{key}"));
        if !folder.exists() {
            cache::aside(&folder, |partial| {
                make(&debs, partial, say)?;
                Ok(fs::write(partial.join("packages"), names.join("\n") + "\n")?)
            })?;
        }
        fs::write(pointer.with_extension("new"), &key)?;
        fs::rename(pointer.with_extension("new"), &pointer)?;
        forget_others(cache, &folder)?;
        Self::at(cache, &pointer)?.context("the bed that was just made is gone")
    }

    fn at(cache: &Path, pointer: &Path) -> Result<Option<Self>> {
        let Ok(key) = fs::read_to_string(pointer) else { return Ok(None) };
        let folder = cache.join(format!("bed-{key}"));
        if !folder.exists() {
            return Ok(None);
        }
        let in_use = cache::lock(&in_use(&folder), FlockArg::LockShared)?;
        Ok(Some(Self { folder, _in_use: in_use }))
    }

    /// The path of one of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// What determines a bed, besides the packages' versions.
fn recipe_key() -> String {
    let lists: [&[&str]; 5] = [
        &recipe::PACKAGES,
        &recipe::DOM0_MODULES,
        &recipe::GUEST_MODULES,
        &recipe::GUEST_SPARE_MODULES,
        &recipe::GUEST_PROGRAMS,
    ];
    let lists: Vec<String> = lists.iter().map(|list| list.join(" ")).collect();
    cache::key([LAYOUT, IMAGE_SIZE].into_iter().chain(lists.iter().map(String::as_str)))
}

/// The lock file of a bed lies beside it, so that it is there before and after the folder.
fn in_use(folder: &Path) -> PathBuf {
    folder.with_extension("lock")
}

/// Removes all beds but `kept` that nobody uses.
fn forget_others(cache: &Path, kept: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let is_bed = path.is_dir()
            && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("bed-"));
        if is_bed
            && path != kept
            && cache::lock(&in_use(&path), FlockArg::LockExclusiveNonblock).is_ok()
        {
            cache::remove(&path)?;
            let _ = fs::remove_file(in_use(&path));
        }
    }
    Ok(())
}

fn make(debs: &[PathBuf], folder: &Path, say: &dyn Fn(&str)) -> Result<()> {
    say(&format!("unpacking {} packages", debs.len()));
    let root = Root::unpack(debs, folder.join("root"))?;
    plain_modules(&root)?;
    let kernel = Kernel::within(&root.folder)?;
    fs::copy(kernel.image(), folder.join("vmlinuz"))?;
    unzip(&hypervisor(&root)?, &folder.join("xen"))?;
    say("making the initramfs of Dom0 and of the guests");
    dom0_initramfs(&root, &kernel)?.write(File::create(folder.join("initramfs"))?)?;
    guest_initramfs(&root, &kernel)?.write(File::create(root.folder.join("boot/guest.cpio"))?)?;
    settle(&root, &kernel)?;
    say("making the root image of Dom0");
    image(&root, &folder.join("dom0.img"))?;
    cache::remove(&root.folder)
}

/// Kernel modules as they are loaded: from Debian 13 on they come compressed.
fn plain_modules(root: &Root) -> Result<()> {
    let modules = root.folder.join("usr/lib/modules");
    if !modules.exists() {
        return Ok(());
    }
    let script = "find \"$1\" -name '*.ko.xz' -print0 | xargs -0 -r -P 2 -n 64 xz -d";
    succeed(Command::new("sh").args(["-c", script, "sh"]).arg(modules)).map(drop)
}

fn hypervisor(root: &Root) -> Result<PathBuf> {
    fs::read_dir(root.folder.join("boot"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("xen-") && name.ends_with("-amd64.gz"))
        })
        .context("the hypervisor's package holds no boot/xen-*-amd64.gz")
}

fn unzip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("gzip")
        .arg("-dc")
        .arg(from)
        .stdin(Stdio::null())
        .stdout(File::create(to)?)
        .status()
        .context("run gzip")?;
    if !status.success() {
        bail!("gzip -dc {}: {status}", from.display());
    }
    Ok(())
}

/// What the packages' scripts would have done, so far as Dom0 needs it.
fn settle(root: &Root, kernel: &Kernel) -> Result<()> {
    let at = |path: &str| root.folder.join(path);
    for folder in
        ["proc", "sys", "dev", "run", "tmp", "root", "bed", "logs", "work", "mnt", "var/log"]
    {
        fs::create_dir_all(at(folder))?;
    }
    let link = |path: &str, target: &str| {
        if at(path).symlink_metadata().is_ok() {
            return Ok(());
        }
        std::os::unix::fs::symlink(target, at(path)).with_context(|| format!("link {path}"))
    };
    link("usr/bin/sh", "bash")?;
    link("usr/bin/awk", "gawk")?;
    link("var/run", "/run")?;
    link("var/lock", "/run/lock")?;
    link("etc/mtab", "/proc/self/mounts")?;
    let version = kernel.version()?;
    link("boot/vmlinuz", &format!("vmlinuz-{version}"))?;
    fs::write(
        at("etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    fs::write(at("etc/group"), "root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n")?;
    fs::write(at("etc/hosts"), "127.0.0.1 localhost dom0\n")?;
    succeed(root.command("usr/bin/kmod", "depmod").arg("-b").arg(&root.folder).arg(version))?;
    Ok(())
}

fn image(root: &Root, image: &Path) -> Result<()> {
    let mut mke2fs = root.command("usr/sbin/mke2fs", "mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"])
        .args(["-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
        .arg(&root.folder)
        .arg(image)
        .arg(IMAGE_SIZE);
    succeed(&mut mke2fs).map(drop)
}

fn dom0_initramfs(root: &Root, kernel: &Kernel) -> Result<Archive> {
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "proc", "sys", "root", "modules"] {
        archive.folder(folder);
    }
    let busybox = root.program("busybox")?;
    archive.file("bin/busybox", 0o755, &fs::read(root.folder.join(busybox))?)?;
    let mut load = String::new();
    for (name, file) in modules(kernel, &recipe::DOM0_MODULES)? {
        archive.file(&format!("modules/{name}.ko"), 0o644, &fs::read(&file)?)?;
        load += &format!("insmod /modules/{name}.ko\n");
    }
    archive.file("load", 0o644, load.as_bytes())?;
    archive.device("dev/console", 0o600, 5, 1);
    Ok(archive)
}

fn guest_initramfs(root: &Root, kernel: &Kernel) -> Result<Archive> {
    let mut archive = Archive::new();
    for folder in
        ["usr/bin", "usr/sbin", "usr/lib64", "dev", "proc", "sys", "mnt", "modules", "etc"]
    {
        archive.folder(folder);
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        archive.link(name, &format!("usr/{name}"));
    }
    archive.link("usr/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let mut files = BTreeSet::new();
    for program in recipe::GUEST_PROGRAMS {
        let path = root.program(program)?;
        files.extend(root.libraries(&path)?);
        files.insert(path);
    }
    let busybox = root.program("busybox")?;
    for path in files {
        archive.file(&path, 0o755, &fs::read(root.folder.join(&path))?)?;
    }
    archive.file("usr/bin/busybox", 0o755, &fs::read(root.folder.join(busybox))?)?;
    for (link, target) in [
        ("usr/bin/sh", "bash"),
        ("usr/sbin/insmod", "../bin/kmod"),
        ("usr/sbin/modprobe", "../bin/kmod"),
    ] {
        archive.link(link, target);
    }
    let mut load = String::new();
    for (name, file) in modules(kernel, &recipe::GUEST_MODULES)? {
        archive.file(&format!("modules/{name}.ko"), 0o644, &fs::read(&file)?)?;
        load += &format!("{name} /modules/{name}.ko\n");
    }
    archive.file("load", 0o644, load.as_bytes())?;
    // Each with those that it needs, in order, for the verb `guest_module`.
    let (mut spare, mut there) = (String::new(), BTreeSet::new());
    for module in recipe::GUEST_SPARE_MODULES {
        let needed = modules(kernel, &[module])?;
        let names: Vec<_> = needed.iter().map(|(name, _)| name.as_str()).collect();
        spare += &format!("{module} {}\n", names.join(" "));
        there.extend(needed);
    }
    for (name, file) in there {
        archive.file(&format!("modules/{name}.ko"), 0o644, &fs::read(&file)?)?;
    }
    archive.file("spare", 0o644, spare.as_bytes())?;
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/bash\n")?;
    archive.device("dev/console", 0o600, 5, 1);
    Ok(archive)
}

/// `wanted` and what they need, in the order in which they load: names and files.
fn modules(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    let files = kernel.with_dependencies(&wanted)?;
    Ok(files
        .into_iter()
        .map(|file| {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
            (name, file)
        })
        .collect())
}
