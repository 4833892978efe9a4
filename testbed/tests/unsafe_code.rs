//! Unsafe code lives in the files that ARCHITECTURE.md names, and in no others.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// The list's place in ARCHITECTURE.md.
const BEGIN: &str = "<!-- unsafe: begin -->";
const END: &str = "<!-- unsafe: end -->";

fn read(path: &str) -> String {
    fs::read_to_string(testbed::programs::workspace().join(path)).expect(path)
}

/// Whether a line of Rust, its comment and strings aside, has the word itself.
fn speaks_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe")
}

/// Files with unsafe code that ships: tests apart.
fn found() -> BTreeSet<String> {
    let output = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "--", "*.rs"])
        .current_dir(testbed::programs::workspace())
        .output()
        .expect("run git");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|path| !path.contains("/tests/") && !path.ends_with("/tests.rs"))
        .filter(|path| testbed::programs::workspace().join(path).exists())
        .filter(|path| {
            let text = read(path);
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            code.lines().any(speaks_unsafe)
        })
        .map(str::to_owned)
        .collect()
}

fn named() -> BTreeSet<String> {
    let text = read("ARCHITECTURE.md");
    let list = text.split(BEGIN).nth(1).and_then(|rest| rest.split(END).next());
    list.expect("ARCHITECTURE.md has the list of files with unsafe code")
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn unsafe_code_is_where_the_architecture_says() {
    let (found, named) = (found(), named());
    let list: String = found.iter().map(|path| format!("- `{path}`\n")).collect();
    assert!(found == named, "the list in ARCHITECTURE.md should be:\n{list}");
}

#[test]
fn every_such_file_gives_its_reason() {
    for path in found() {
        let text = read(&path);
        assert!(
            text.contains("#![expect(unsafe_code, reason =")
                || text.contains("#[expect(unsafe_code, reason =")
                || text.contains("unsafe_code,\n    reason ="),
            "{path}: expects unsafe code without giving a reason"
        );
    }
}

#[test]
fn the_word_is_found_in_code_only() {
    assert!(speaks_unsafe("    unsafe { read(pointer) }"));
    assert!(speaks_unsafe("pub unsafe trait Memory {"));
    assert!(!speaks_unsafe("#![deny(unsafe_code)]"));
    assert!(!speaks_unsafe("let safe = 1; // not unsafe at all"));
}
