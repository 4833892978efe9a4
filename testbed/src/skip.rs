//! A test that cannot run here says so, loudly, and what would let it run.

use std::io::Write as _;

use crate::packages::{self, Program};

/// Whether all of `programs` are here or could be installed. If not, says so on standard error,
/// for the test to return; where skipping is not allowed (`DOMKIT_NO_SKIP=1`), it fails instead.
///
/// # Panics
///
/// Where skipping is not allowed.
#[must_use]
pub fn unless_installed(test: &str, programs: &[Program]) -> bool {
    match packages::ensure(programs) {
        Ok(()) => true,
        Err(absent) => {
            because(test, &absent.to_string());
            false
        }
    }
}

/// Whether we are root; if not, says that `test` is skipped.
///
/// # Panics
///
/// Where skipping is not allowed.
#[must_use]
pub fn unless_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        because(test, "it needs root; run the tests as root to see it");
    }
    root
}

/// Says that `test` is skipped, and why.
///
/// # Panics
///
/// Where skipping is not allowed.
pub fn because(test: &str, why: &str) {
    let allowed = std::env::var_os("DOMKIT_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "{test} must not be skipped here (DOMKIT_NO_SKIP=1): {why}");
    // Not by a macro: what those print, the test harness keeps to itself where the test passes.
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}
