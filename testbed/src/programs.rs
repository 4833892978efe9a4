//! The project's own programs, built as they are needed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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

/// The members whose programs stand alone in a guest.
const GUEST: [&str; 5] =
    ["domkit-hypervisor", "domkit-blkback", "domkit-blkfront", "domkit-netback", "domkit-netfront"];

/// Builds the binary or shared library `target` of `package` (without the prefix that names carry
/// outside) and answers where it lies.
///
/// All programs are built by one call of cargo, once in this process for each way of building: a
/// call for each would build what they share again with other features.
///
/// # Errors
///
/// Cargo's own, which it has printed.
pub fn build(package: &str, target: &str, how: Build) -> Result<PathBuf> {
    all(how)?.remove(target).with_context(|| {
        format!("domkit-{package} has no program or shared library '{target}' for {how:?}")
    })
}

/// Targets by their names, and where each was put.
pub type Products = BTreeMap<String, PathBuf>;

/// Builds all programs and shared libraries, as [`build`] does.
///
/// # Errors
///
/// Cargo's own, which it has printed.
pub fn all(how: Build) -> Result<Products> {
    static BUILT: Mutex<BTreeMap<Build, Products>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(match built.entry(how) {
        Entry::Occupied(products) => products.get().clone(),
        Entry::Vacant(place) => place.insert(ask_cargo(how)?).clone(),
    })
}

fn cargo(verb: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace())
        .args([verb, "--quiet", "--message-format=json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    cargo
}

fn ask_cargo(how: Build) -> Result<Products> {
    let mut cargo = cargo("build");
    match how {
        Build::Tests => {
            cargo.arg("--workspace");
        }
        Build::Release => {
            cargo.args(["--workspace", "--release"]);
        }
        Build::Static => {
            cargo.args(GUEST.iter().flat_map(|package| ["--package", package]));
            statically(&mut cargo);
        }
    }
    products(cargo, how)
}

/// Lets cargo build programs that need no shared library.
fn statically(cargo: &mut Command) {
    // A target of its own keeps the flag away from build scripts and from the other builds.
    cargo
        .args(["--release", "--target", "x86_64-unknown-linux-gnu"])
        .args(["--target-dir".into(), workspace().join("target/static")])
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
}

/// Builds the test program `test` of `package` (without its prefix) so that it runs anywhere.
///
/// # Errors
///
/// Cargo's own, which it has printed, or there is no such test.
pub fn static_test(package: &str, test: &str) -> Result<PathBuf> {
    let package = format!("domkit-{package}");
    let mut cargo = cargo("test");
    cargo.args(["--no-run", "--package", &package, "--test", test]);
    statically(&mut cargo);
    products(cargo, Build::Static)?
        .remove(test)
        .with_context(|| format!("{package} has no test '{test}'"))
}

fn products(mut cargo: Command, how: Build) -> Result<Products> {
    let output = cargo.output().context("run cargo")?;
    if !output.status.success() {
        bail!("cargo could not build the programs ({how:?}): {}", output.status);
    }
    let products: Products = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(Message::product)
        .collect();
    Ok(products)
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
    kind: Vec<String>,
}

impl Message {
    /// The target's name and the program or shared library that it became, if it is one.
    fn product(self) -> Option<(String, PathBuf)> {
        let shared = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "so");
        let is_library = self.target.as_ref()?.kind.iter().any(|kind| kind == "cdylib");
        let library = || self.filenames.into_iter().find(|path| is_library && shared(path));
        Some((self.target?.name, self.executable.or_else(library)?))
    }
}
