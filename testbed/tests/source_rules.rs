//! What every source file of the project keeps to.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Lines of code, comments and blank lines aside, that a file may have.
const MOST_LINES: usize = 500;

/// The project's own Rust files.
fn sources() -> Vec<(PathBuf, String)> {
    let output = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "--", "*.rs"])
        .current_dir(testbed::programs::workspace())
        .output()
        .expect("run git");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(PathBuf::from)
        .filter_map(|path| {
            let text = fs::read_to_string(testbed::programs::workspace().join(&path)).ok()?;
            Some((path, text))
        })
        .collect();
    assert!(files.len() > 20, "only {} files: is this the project?", files.len());
    files
}

fn lines_of_code(text: &str) -> usize {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[test]
fn files_stay_short() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, lines_of_code(&text)))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines of code: {long:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not hold what it looks for.
    let marks =
        ["TO-DO", "FIX-ME", "XX-X", "to-do!(", "unimple-mented!("].map(|m| m.replace('-', ""));
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for mark in &marks {
                let at = format!("{}:{}", path.display(), number + 1);
                assert!(!line.contains(mark.as_str()), "{at}: '{mark}': {line}");
            }
        }
    }
}

#[test]
fn no_folder_of_odds_and_ends() {
    for (path, _) in sources() {
        for part in &path {
            let stem = part.to_string_lossy();
            let stem = stem.trim_end_matches(".rs");
            assert!(
                !["utils", "util", "common", "helpers", "misc"].contains(&stem),
                "{}: a name that says nothing",
                path.display()
            );
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    // A module's own tests are described by the module.
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let inner = first.starts_with("//!") || first.starts_with("#![");
        assert!(inner, "{}: begins with neither a module comment nor an attribute", path.display());
    }
}
