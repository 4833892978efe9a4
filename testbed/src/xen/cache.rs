//! Where what was fetched and built is kept: keyed by what went into it, made aside and then renamed,
//! so that a run which is killed half-way, or two at once, leave nothing half-made behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::programs::workspace;

/// The folder of the cache: `DOMKIT_TESTBED_CACHE`, or `target/testbed` in the checkout.
#[must_use]
pub fn folder() -> PathBuf {
    std::env::var_os("DOMKIT_TESTBED_CACHE")
        .map_or_else(|| workspace().join("target/testbed"), PathBuf::from)
}

/// Holds `file` locked, made if it is not there; waits for others.
///
/// # Errors
///
/// It cannot be made or locked.
pub(super) fn lock(file: &Path, how: FlockArg) -> Result<Flock<File>> {
    let shown = file.display();
    let opened = File::options().create(true).append(true).open(file);
    let opened = opened.with_context(|| format!("open {shown}"))?;
    Flock::lock(opened, how).map_err(|(_, errno)| errno).with_context(|| format!("lock {shown}"))
}

/// A key for what `inputs` determine: FNV-1a, 64 bits. It tells changes apart; it proves nothing.
pub(super) fn key<'a>(inputs: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for input in inputs {
        // 0xff is in no UTF-8 text, so it ends each input.
        for byte in input.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// Makes the folder `wanted` by letting `make` fill one beside it, which then gets its name.
///
/// # Errors
///
/// Those of `make`.
pub(super) fn aside(wanted: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = wanted.with_extension("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial)?;
    make(&partial)?;
    remove(wanted)?;
    fs::rename(&partial, wanted).with_context(|| format!("rename to {}", wanted.display()))
}

/// Removes a folder, if it is there.
///
/// # Errors
///
/// It is there and cannot be removed.
pub(super) fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_where_inputs_do_and_only_there() {
        assert_eq!(key(["a", "bc"]), key(["a", "bc"]));
        assert_ne!(key(["a", "bc"]), key(["ab", "c"]));
        assert_ne!(key(["a"]), key(["a", ""]));
        // The published check value of FNV-1a for one byte 0xff after nothing differs from the basis.
        assert_eq!(key([]), "cbf29ce484222325");
    }

    #[test]
    fn what_was_left_half_made_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let wanted = place.path().join("bed-1");
        let failed = aside(&wanted, |partial| {
            fs::write(partial.join("half"), "")?;
            anyhow::bail!("killed")
        });
        assert!(failed.is_err() && !wanted.exists());
        aside(&wanted, |partial| Ok(fs::write(partial.join("whole"), "")?)).unwrap();
        assert!(wanted.join("whole").exists() && !wanted.join("half").exists());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
