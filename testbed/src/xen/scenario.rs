//! Scenarios: shell files for Dom0, with a header that says what they are.
//!
//! The header is made of the comment lines `# key: value` that the file begins with:
//!
//! | key | value | without it |
//! | --- | --- | --- |
//! | `about` | one line for `testbed list` | refused |
//! | `takes` | how long it takes, about, with two CPUs under emulation | refused |
//! | `limit` | seconds after which it has failed | 900 |
//! | `stages` | how many boots on the same disks | 1 |
//! | `ci` | `yes`: the gate runs it | `no` |
//! | `thread` | `single`: emulate all CPUs by one thread, as PVH guests need | `multi` |
//! | `memory` | the machine's, in MiB | 4096 |
//! | `tests` | `package/test` ...: test programs built for it, found in /bed/tests | none |
//!
//! Their verbs are those of `testbed/scenarios/lib.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::boot::Threads;
use crate::programs::workspace;

/// A scenario and what its header says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Scenario {
    /// Its file's name without `.sh`.
    pub name: String,
    /// What it shows, in one line.
    pub about: String,
    /// How long it takes, about.
    pub takes: String,
    /// Whether the gate runs it.
    pub ci: bool,
    /// How many boots it has.
    pub stages: u32,
    /// When it has failed for taking too long.
    #[serde(rename = "limit_seconds", serialize_with = "seconds")]
    pub limit: Duration,
    /// How CPUs are emulated.
    pub threads: Threads,
    /// The machine's memory.
    pub memory_mib: u32,
    /// Test programs that it runs, as `package/test`.
    pub tests: Vec<String>,
    /// Its file.
    #[serde(skip)]
    pub file: PathBuf,
}

fn seconds<S: serde::Serializer>(limit: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(limit.as_secs())
}

impl Scenario {
    /// A scenario for `file` of which nothing is known.
    fn unknown(file: &Path) -> Self {
        Self {
            name: file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            about: String::new(),
            takes: String::new(),
            ci: false,
            stages: 1,
            limit: Duration::from_secs(900),
            threads: Threads::Multi,
            memory_mib: 4096,
            tests: Vec::new(),
            file: file.to_owned(),
        }
    }

    /// The scenario in `file`, wherever that lies; it may lack the header.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or its header is wrong.
    pub fn of_script(file: &Path) -> Result<Self> {
        let shown = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("read {shown}"))?;
        Self::unknown(file).told_by(&text).with_context(|| format!("the header of {shown}"))
    }

    /// The project's scenario of that name.
    ///
    /// # Errors
    ///
    /// There is none, or its header is wrong or incomplete.
    pub fn named(name: &str) -> Result<Self> {
        let file = folder().join(format!("{name}.sh"));
        if name == "lib" || name.contains('/') || !file.is_file() {
            let all: Vec<String> = all()?.into_iter().map(|scenario| scenario.name).collect();
            bail!(
                "scenario '{name}': there is none; there are {}; see 'testbed list'",
                all.join(", ")
            );
        }
        let scenario = Self::of_script(&file)?;
        let shown = file.display();
        ensure!(!scenario.about.is_empty(), "the header of {shown} lacks 'about'");
        ensure!(!scenario.takes.is_empty(), "the header of {shown} lacks 'takes'");
        Ok(scenario)
    }

    /// This one, with what the header of `text` says.
    fn told_by(mut self, text: &str) -> Result<Self> {
        let header = text.lines().map_while(|line| line.strip_prefix('#'));
        for (key, value) in header.filter_map(|line| line.trim_start().split_once(": ")) {
            let value = value.trim();
            let number =
                || value.parse::<u32>().ok().filter(|n| *n > 0).context("no number above 0");
            let limit = |limit: u32| Duration::from_secs(limit.into());
            let mut take = || -> Result<()> {
                match key {
                    "about" => self.about = value.into(),
                    "takes" => self.takes = value.into(),
                    "ci" => self.ci = yes(value)?,
                    "stages" => self.stages = number()?,
                    "limit" => self.limit = limit(number()?),
                    "thread" => self.threads = value.parse()?,
                    "memory" => self.memory_mib = number()?,
                    "tests" => self.tests = value.split_whitespace().map(str::to_owned).collect(),
                    _ => bail!("no such key"),
                }
                Ok(())
            };
            take().with_context(|| format!("'{key}: {value}'"))?;
        }
        Ok(self)
    }
}

fn yes(value: &str) -> Result<bool> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => bail!("neither yes nor no"),
    }
}

/// Where the project's scenarios are.
#[must_use]
pub fn folder() -> PathBuf {
    workspace().join("testbed/scenarios")
}

/// All of the project's scenarios, by name.
///
/// # Errors
///
/// A header is wrong or incomplete.
pub fn all() -> Result<Vec<Scenario>> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .with_context(|| format!("look into {}", folder().display()))?
        .filter_map(|entry| {
            entry.ok()?.file_name().to_str()?.strip_suffix(".sh").map(str::to_owned)
        })
        .filter(|name| name != "lib")
        .collect();
    names.sort();
    names.iter().map(|name| Scenario::named(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Result<Scenario> {
        Scenario::unknown(Path::new("x/cut.sh")).told_by(text)
    }

    #[test]
    fn the_header_ends_where_the_comments_do() {
        let text = "# about: pulls the plug\n# takes: 90 s\n# stages: 2\n# ci: yes\n#\n# limit: 60\n\
                    # thread: single\n# tests: hypervisor/xen ring/a\nsay hello\n# ci: no\n";
        let scenario = told(text).unwrap();
        assert_eq!(scenario.name, "cut");
        assert_eq!((scenario.about.as_str(), scenario.takes.as_str()), ("pulls the plug", "90 s"));
        assert!(scenario.ci);
        assert_eq!((scenario.stages, scenario.limit.as_secs()), (2, 60));
        assert_eq!(scenario.threads, Threads::Single);
        assert_eq!(scenario.tests, ["hypervisor/xen", "ring/a"]);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, named) in
            [("# stages: 0", "stages: 0"), ("# ci: maybe", "ci: maybe"), ("# abuot: x", "abuot")]
        {
            let error = format!("{:#}", told(text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn the_projects_own_are_well_formed() {
        let all = all().unwrap();
        assert!(all.iter().any(|scenario| scenario.name == "boot" && scenario.ci), "{all:?}");
        assert!(Scenario::named("lib").is_err());
        let error = Scenario::named("boto").unwrap_err().to_string();
        assert!(error.contains("boot"), "{error}");
    }
}
