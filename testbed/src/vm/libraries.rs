//! A program of this machine's, with what it needs to run in another: the shared libraries that it loads.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::succeed;

/// The program at `path` and its libraries, each by the path that it is looked for at.
///
/// # Errors
///
/// It is no program that could be run here.
pub fn with_libraries(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    // The loader itself says what it would load, and lists itself too.
    let said = succeed(Command::new("ldd").arg(path), Path::new("/"))?;
    let mut files = vec![(path.display().to_string(), path.to_owned())];
    for word in said.split_whitespace().filter(|word| word.starts_with('/')) {
        let file = Path::new(word).canonicalize().with_context(|| format!("find {word}"))?;
        files.push((word.to_owned(), file));
    }
    Ok(files)
}
