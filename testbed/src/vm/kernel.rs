//! Debian's own kernel, fetched and unpacked, nothing installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::{modinfo, succeed};

/// The package that always depends on the newest stock kernel.
const META: &str = "linux-image-amd64";

/// A kernel image and its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The newest stock kernel, kept unpacked in `cache`.
    ///
    /// # Errors
    ///
    /// It is not in the cache and cannot be fetched.
    pub fn of_debian(cache: &Path) -> Result<Self> {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        fs::create_dir_all(cache)?;
        // Other processes' tests want it too.
        let lock = fs::File::create(cache.join("kernel.lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .context("lock the cache of kernels")?;
        let folder = cache.join("kernel");
        if !folder.join("boot").exists() {
            fetch(cache, &folder)?;
        }
        Self::within(&folder)
    }

    /// The kernel and its modules within `folder`, where its package was unpacked.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn within(folder: &Path) -> Result<Self> {
        let image = only(&folder.join("boot"), "vmlinuz-")?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|path| folder.join(path))
            .into_iter()
            .find(|path| path.exists())
            .context("the kernel package holds no modules")?;
        Ok(Self { image, modules: only(&modules, "")? })
    }

    /// What is booted.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Its version, such as `6.1.0-37-amd64`.
    ///
    /// # Errors
    ///
    /// The folder of its modules is not named so.
    pub fn version(&self) -> Result<&str> {
        let name = self.modules.file_name().and_then(|name| name.to_str());
        name.context("the kernel's modules lie in no folder of its version")
    }

    /// The files of `modules` and of all that they need, each after what it needs. What is built into the kernel has
    /// none.
    ///
    /// # Errors
    ///
    /// There is no module of that name.
    pub fn with_dependencies(&self, modules: &[String]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        if modules.is_empty() {
            return Ok(order);
        }
        let mut files = BTreeMap::new();
        collect(&self.modules.join("kernel"), &mut files)?;
        let mut begun = self.built_in()?;
        for module in modules {
            append(module, &files, &mut begun, &mut order)?;
        }
        Ok(order)
    }

    /// The names of what would be modules and is part of the image.
    fn built_in(&self) -> Result<BTreeSet<String>> {
        let list = self.modules.join("modules.builtin");
        let list = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        Ok(list.lines().filter_map(|path| Some(name_of(path.rsplit('/').next()?))).collect())
    }
}

/// Appends what `module` needs to `order`, and then `module`; nothing that is there already.
fn append(
    module: &str,
    files: &BTreeMap<String, PathBuf>,
    begun: &mut BTreeSet<String>,
    order: &mut Vec<PathBuf>,
) -> Result<()> {
    if !begun.insert(module.to_owned()) {
        return Ok(());
    }
    let file = files.get(module).with_context(|| format!("the kernel has no module '{module}'"))?;
    let shown = file.display();
    let bytes = fs::read(file).with_context(|| format!("read {shown}"))?;
    for needed in modinfo::depends(&bytes).with_context(|| format!("look into {shown}"))? {
        append(&needed, files, begun, order)?;
    }
    order.push(file.clone());
    Ok(())
}

/// Every module's file below `folder`, by the module's name.
fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let shown = folder.display();
    for entry in fs::read_dir(folder).with_context(|| format!("look into {shown}"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, files)?;
        } else if name.contains(".ko") {
            files.insert(name_of(&name), path);
        }
    }
    Ok(())
}

/// A module's name: its file's without suffix, dashes as underscores.
fn name_of(file: &str) -> String {
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let shown = folder.display();
    fs::read_dir(folder)
        .with_context(|| format!("look into {shown}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("{shown} holds no '{prefix}...'"))
}

fn fetch(cache: &Path, folder: &Path) -> Result<()> {
    eprintln!("fetching Debian's kernel into {}", folder.display());
    let package = newest().or_else(|error| {
        // An image without package lists, as containers have: make them, if we may.
        succeed(Command::new("apt-get").args(["update", "-qq"]), cache).map_err(|_| error)?;
        newest()
    })?;
    let debs = cache.join("debs");
    fs::create_dir_all(&debs)?;
    let download = || succeed(Command::new("apt-get").args(["download", "-qq", &package]), &debs);
    download().or_else(|error| {
        succeed(Command::new("apt-get").args(["update", "-qq"]), cache).map_err(|_| error)?;
        download()
    })?;
    let deb = only(&debs, &package)?;
    let partial = cache.join("kernel.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    succeed(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&partial), cache)?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&partial, folder)?;
    Ok(fs::remove_dir_all(&debs)?)
}

/// The package of the newest stock kernel, such as `linux-image-6.1.0-37-amd64`.
fn newest() -> Result<String> {
    let text =
        succeed(Command::new("apt-cache").args(["depends", "--important", META]), Path::new("/"))?;
    let package = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"));
    match package {
        Some(package) => Ok(package.to_owned()),
        None => bail!("apt-cache does not know what {META} depends on; run apt-get update"),
    }
}
