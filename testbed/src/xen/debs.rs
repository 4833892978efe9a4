//! Debian packages, fetched into the cache and installed nowhere.
//!
//! apt is told that nothing is installed (an empty status file), so that it names the whole closure. It
//! uses the machine's package lists, or makes lists of its own in the cache where there are none; either
//! way it checks signatures as always. Another release than the machine's comes from the same archive, by lists
//! of its own. Next: [`super::root`] unpacks what is here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::recipe;

/// What the archive's releases are signed with.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt, as it works for us.
struct Apt<'a> {
    cache: &'a Path,
    /// Whether the package lists are our own.
    own_lists: bool,
    /// Which release, if not the machine's: by a list of sources in the cache.
    release: Option<&'a str>,
}

/// The files of all packages that a bed is made of, fetched where they are missing; of the machine's own
/// release of Debian, or of the one named.
///
/// # Errors
///
/// There is no apt, or it does not know or cannot fetch a package; the error holds what it said.
pub(super) fn gather(
    cache: &Path,
    release: Option<&str>,
    say: &dyn Fn(&str),
) -> Result<Vec<PathBuf>> {
    ensure!(
        Path::new("/usr/bin/apt-get").exists() && Path::new("/usr/bin/dpkg-deb").exists(),
        "real Xen comes from Debian's packages, and there is no apt-get here: use Debian 12 or later, \
         or a container of it"
    );
    for folder in ["debs/partial", "lists/partial"] {
        fs::create_dir_all(cache.join(folder))?;
    }
    fs::write(cache.join("no-packages"), "")?;
    let theirs = Apt { cache, own_lists: false, release: None };
    let ours = Apt { cache, own_lists: true, release };
    let refreshed = |apt: &Apt<'_>| {
        say("refreshing the package lists (in the cache)");
        apt.run(&["update", "-qq"])
    };
    let Some(release) = release else {
        return theirs.fetch(say).or_else(|_| {
            refreshed(&ours)?;
            ours.fetch(say)
        });
    };
    let archive = theirs.archive().or_else(|_| {
        let own = Apt { own_lists: true, ..theirs };
        refreshed(&own)?;
        own.archive()
    })?;
    let sources = format!("deb [signed-by={KEYS}] {archive} {release} main\n");
    fs::write(cache.join("sources.list"), sources)?;
    refreshed(&ours).with_context(|| format!("Debian release '{release}'"))?;
    ours.fetch(say)
}

impl Apt<'_> {
    fn fetch(&self, say: &dyn Fn(&str)) -> Result<Vec<PathBuf>> {
        let mut wanted = self.hypervisor()?;
        wanted.extend(recipe::PACKAGES.map(str::to_owned));
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let files = self.closure(&wanted)?;
        let missing = files.iter().filter(|file| !file.exists()).count();
        if missing > 0 {
            say(&format!("fetching {missing} of {} packages", files.len()));
            self.run(&[&["install", "--download-only", "-y", "-qq"], wanted.as_slice()].concat())?;
        }
        for file in &files {
            ensure!(file.exists(), "apt-get did not fetch {}", file.display());
        }
        Ok(files)
    }

    /// Where the machine has Debian's main archive from.
    fn archive(&self) -> Result<String> {
        let targets = ["indextargets", "--format", "$(ORIGIN)/$(LABEL) $(REPO_URI)"];
        let all = self.run(&[&targets[..], &["Created-By: Packages"]].concat())?;
        let found = all.lines().find_map(|line| line.strip_prefix("Debian/Debian "));
        Ok(found.context("apt's sources name no archive of Debian's")?.to_owned())
    }

    /// The newest hypervisor that the lists know, and the tools of that version.
    fn hypervisor(&self) -> Result<Vec<String>> {
        let names = self.query(&["pkgnames", "xen-hypervisor-4."])?;
        let newest = names
            .lines()
            .filter_map(|name| {
                name.strip_prefix("xen-hypervisor-4.")?.strip_suffix("-amd64")?.parse::<u32>().ok()
            })
            .max()
            .context("the package lists have no xen-hypervisor-4.*-amd64")?;
        Ok(vec![format!("xen-hypervisor-4.{newest}-amd64"), format!("xen-utils-4.{newest}")])
    }

    /// Where the files of `wanted` and of all that they depend on are, or will be.
    fn closure(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let plan = self.run(&[&["install", "--simulate", "-qq"], wanted].concat())?;
        let files: Vec<PathBuf> = plan
            .lines()
            .filter_map(file_of)
            .map(|file| self.cache.join("debs").join(file))
            .collect();
        ensure!(!files.is_empty(), "apt-get plans to install nothing:\n{plan}");
        Ok(files)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.ask("apt-get", arguments)
    }

    fn query(&self, arguments: &[&str]) -> Result<String> {
        self.ask("apt-cache", arguments)
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let option = |name: &str, path: &str| format!("{name}={}", self.cache.join(path).display());
        let mut command = Command::new(program);
        let mut options = vec![
            option("Dir::State::status", "no-packages"),
            option("Dir::Cache::archives", "debs"),
            "Dir::Cache::pkgcache=".into(),
            "Dir::Cache::srcpkgcache=".into(),
            "Debug::NoLocking=1".into(),
            "APT::Install-Recommends=false".into(),
        ];
        if self.own_lists {
            options.push(option("Dir::State::lists", "lists"));
        }
        if self.release.is_some() {
            options.push(option("Dir::Etc::sourcelist", "sources.list"));
            options.push("Dir::Etc::sourceparts=-".into());
        }
        if nix::unistd::geteuid().is_root() {
            // Its own user cannot write below a home folder.
            options.push("APT::Sandbox::User=root".into());
        }
        command.args(options.iter().flat_map(|option| ["-o", option])).args(arguments);
        let output = command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {program}"))?;
        if !output.status.success() {
            let wrote = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {}: {}\n{wrote}", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The file that a line of a simulated installation stands for:
/// `Inst name (version release [architecture])`.
fn file_of(line: &str) -> Option<String> {
    let mut words = line.strip_prefix("Inst ")?.split_whitespace();
    let name = words.next()?;
    let version = words.next()?.strip_prefix('(')?;
    // What follows it is the state of other packages.
    let architecture = words.find_map(|word| word.strip_prefix('[')?.strip_suffix("])"))?;
    Some(format!("{name}_{}_{architecture}.deb", version.replace(':', "%3a")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planned_installation_names_the_file() {
        let line = "Inst libc6 (2.36-9+deb12u10 Debian:12.10/stable [amd64]) []";
        assert_eq!(file_of(line).as_deref(), Some("libc6_2.36-9+deb12u10_amd64.deb"));
        let line =
            "Inst qemu-system-xen (1:7.2+dfsg-7 Debian:12/stable, Debian-Security:12 [amd64])";
        assert_eq!(file_of(line).as_deref(), Some("qemu-system-xen_1%3a7.2+dfsg-7_amd64.deb"));
        assert_eq!(file_of("Conf libc6 (2.36 Debian:12 [amd64])"), None);
    }
}
