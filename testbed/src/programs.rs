//! The project's own programs, built as they are needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The folder that holds the whole project.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Build {
    /// As the tests themselves are.
    Tests,
    /// With all optimisations, for measuring.
    Release,
    /// With all optimisations and without shared libraries, for a guest that has none.
    Static,
}

/// Builds the binary or shared library `target` of `package` (without the prefix that names carry
/// outside) and answers where it lies. Within one process each is asked of cargo once.
///
/// # Errors
///
/// Cargo's own, which it has printed.
pub fn build(package: &str, target: &str, how: Build) -> Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<(String, String, Build), PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let key = (package.to_owned(), target.to_owned(), how);
    if let Some(path) = built.get(&key) {
        return Ok(path.clone());
    }
    let path = ask_cargo(package, target, how)?;
    built.insert(key, path.clone());
    Ok(path)
}

fn ask_cargo(package: &str, target: &str, how: Build) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace())
        .args(["build", "--quiet", "--message-format=json-render-diagnostics", "--package"])
        .arg(format!("domkit-{package}"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    match how {
        Build::Tests => {}
        Build::Release => {
            cargo.arg("--release");
        }
        Build::Static => {
            // A target of its own keeps the flag away from build scripts and from the other builds.
            cargo
                .args(["--release", "--target", "x86_64-unknown-linux-gnu"])
                .args(["--target-dir".into(), workspace().join("target/static")])
                .env("RUSTFLAGS", "-C target-feature=+crt-static");
        }
    }
    let output = cargo.output().context("run cargo")?;
    if !output.status.success() {
        bail!("cargo could not build {target} of domkit-{package}: {}", output.status);
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.target.as_ref().is_some_and(|made| made.name == target))
        .find_map(Message::product)
        .with_context(|| format!("domkit-{package} has no program or shared library '{target}'"))
}

/// One line of what cargo says about what it made.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Message {
    fn product(self) -> Option<PathBuf> {
        let shared = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "so");
        self.executable.or_else(|| self.filenames.into_iter().find(shared))
    }
}
