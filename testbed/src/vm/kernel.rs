//! Debian's own kernel, fetched and unpacked, nothing installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::succeed;

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

    fn within(folder: &Path) -> Result<Self> {
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

    /// The files of `modules` and of all that they need, each after what it needs.
    ///
    /// # Errors
    ///
    /// There is no module of that name.
    pub fn with_dependencies(&self, modules: &[String]) -> Result<Vec<PathBuf>> {
        if modules.is_empty() {
            return Ok(Vec::new());
        }
        let folder = self.modules.parent().and_then(|path| path.parent()).context("a folder")?;
        let root = if folder.ends_with("lib") { folder.parent().unwrap_or(folder) } else { folder };
        if !self.modules.join("modules.dep").exists() {
            let release = self.modules.file_name().context("a release")?;
            let mut depmod = Command::new("/sbin/depmod");
            depmod.arg("-b").arg(root).arg(release);
            succeed(&mut depmod, root)?;
        }
        let text = fs::read_to_string(self.modules.join("modules.dep"))?;
        let needs: BTreeMap<&str, Vec<&str>> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(module, needs)| (module, needs.split_whitespace().collect()))
            .collect();
        let mut order = Vec::new();
        let mut done = BTreeSet::new();
        for module in modules {
            let path = needs
                .keys()
                .find(|path| name_of(path) == *module)
                .with_context(|| format!("the kernel has no module '{module}'"))?;
            // modules.dep lists everything that is needed, the nearest first.
            for path in needs.get(path).into_iter().flatten().rev().chain([path]) {
                if done.insert(*path) {
                    order.push(self.modules.join(path));
                }
            }
        }
        Ok(order)
    }
}

/// A module's name: its file's without folder and suffix, dashes as underscores.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
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
