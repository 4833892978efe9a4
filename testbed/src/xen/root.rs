//! A root file system from Debian packages: unpacked, their scripts not run, by whoever we are.
//!
//! Before: [`super::debs`] fetched the packages. Next: [`super::bed`] makes images of it. All files become
//! the caller's; within Dom0 and the guests everything runs as root, which may do all with them. Programs
//! of the new root are used for building (mke2fs, depmod), through its own loader, so that
//! the machine needs none of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What no machine of the bed reads.
const LEFT_OUT: [&str; 4] =
    ["./usr/share/doc/*", "./usr/share/man/*", "./usr/share/locale/*", "./usr/share/info/*"];
/// The loader itself; the name by which programs call it is a link that leads out of the root.
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// Where libraries are, the second for fio's.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];

/// An unpacked root.
#[derive(Debug)]
pub(super) struct Root {
    /// Its folder.
    pub(super) folder: PathBuf,
}

impl Root {
    /// Unpacks `debs` into `folder`.
    ///
    /// # Errors
    ///
    /// A package does not unpack.
    pub(super) fn unpack(debs: &[PathBuf], folder: PathBuf) -> Result<Self> {
        // Debian's merged /usr, which a package's own ./lib must not replace.
        for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
            fs::create_dir_all(folder.join("usr").join(name))?;
            std::os::unix::fs::symlink(Path::new("usr").join(name), folder.join(name))?;
        }
        for deb in debs {
            unpack(deb, &folder).with_context(|| {
                format!("unpack {} (remove it if it is damaged)", deb.display())
            })?;
        }
        Ok(Self { folder })
    }

    /// A command that runs this root's own program at `path` as `called`.
    pub(super) fn command(&self, path: &str, called: &str) -> Command {
        let mut command = self.loader();
        command.args(["--argv0", called]).arg(self.folder.join(path)).stdin(Stdio::null());
        command
    }

    fn loader(&self) -> Command {
        let mut command = Command::new(self.folder.join(LOADER));
        let folders = LIBRARIES.map(|folder| self.folder.join(folder).display().to_string());
        command.args(["--library-path", &folders.join(":")]);
        command
    }

    /// Where `program` is, relative to the root.
    ///
    /// # Errors
    ///
    /// It is in none of the usual folders.
    pub(super) fn program(&self, program: &str) -> Result<String> {
        ["usr/bin", "usr/sbin"]
            .map(|folder| format!("{folder}/{program}"))
            .into_iter()
            .find(|path| self.folder.join(path).is_file())
            .with_context(|| format!("the packages hold no program '{program}'"))
    }

    /// The libraries that the program at `path` loads, relative to the root.
    ///
    /// # Errors
    ///
    /// One is missing.
    pub(super) fn libraries(&self, path: &str) -> Result<Vec<String>> {
        let output = succeed(self.loader().arg("--list").arg(self.folder.join(path)))?;
        let mut libraries = vec![LOADER.to_owned()];
        // "name => path (address)"; what has no arrow is the kernel's.
        for (name, found) in output.lines().filter_map(|line| line.split_once(" => ")) {
            if name.contains("/ld-linux") {
                continue;
            }
            let file = Path::new(found.split(" (").next().unwrap_or(found));
            let within = file.strip_prefix(&self.folder).ok().with_context(|| {
                format!("{path} needs {}, which no package holds ({found})", name.trim())
            })?;
            libraries.push(within.to_string_lossy().into_owned());
        }
        Ok(libraries)
    }
}

fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    let mut source = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run dpkg-deb")?;
    let archive = source.stdout.take().context("dpkg-deb's output")?;
    let status = Command::new("tar")
        .args(["-x", "--no-same-owner", "--keep-directory-symlink", "-C"])
        .arg(folder)
        .args(LEFT_OUT.map(|pattern| format!("--exclude={pattern}")))
        .stdin(archive)
        .status()
        .context("run tar")?;
    let source = source.wait()?;
    if !status.success() || !source.success() {
        bail!("tar: {status}; dpkg-deb: {source}");
    }
    Ok(())
}

/// Runs `command`, which must succeed, and answers its standard output.
///
/// # Errors
///
/// It fails; the error holds what it wrote.
pub(super) fn succeed(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        let wrote = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{wrote}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
