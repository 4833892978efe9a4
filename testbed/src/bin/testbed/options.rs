//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use testbed::xen::scenario::Scenario;
use testbed::xen::{Options, Threads};

const EXAMPLES: &str = "\
Examples:
  testbed list                       what there is to run
  testbed run boot                   boot Xen, Dom0 and a stock guest, and look at its disk
  testbed run --script try.sh        a scenario of yours: shell commands for Dom0
  testbed shell                      Dom0 on this terminal, with xl and the project's programs
  testbed shell --command 'xl info'  one command in a Dom0 of its own
  testbed run boot --debian trixie   the same with that release's Xen and Linux
  testbed prepare --refresh          take newer packages

A real Xen hypervisor boots in QEMU with a Debian Dom0; its guests are stock Debian kernels. Nothing is
installed but QEMU. The packages (170 MB) and images (1 GB) are kept in target/testbed, or where
DOMKIT_TESTBED_CACHE says; logs of each run in target/testbed/logs/SCENARIO. A scenario is a shell file:
testbed/scenarios/lib.sh describes its verbs, testbed/src/xen/scenario.rs its header.";

/// Boots a real Xen in QEMU and runs scenarios in its Dom0.
#[derive(Debug, Parser)]
#[command(name = "testbed", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fetch the packages and make the images; `run` and `shell` do it where it was not done.
    Prepare {
        /// Look for newer packages, and make the images anew if there are any.
        #[arg(long)]
        refresh: bool,
        #[command(flatten)]
        packages: Packages,
    },
    /// Run scenarios; the exit status says whether all passed.
    Run(Run),
    /// Boot Dom0 with a shell on this terminal; Ctrl-A X ends it at once.
    Shell {
        #[command(flatten)]
        machine: Machine,
        /// Keep the run's folder, with the work disk.
        #[arg(long)]
        keep: bool,
        /// Run these shell commands instead, and end.
        #[arg(long, value_name = "COMMANDS")]
        command: Option<String>,
    },
    /// List the scenarios.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Which scenarios.
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenarios: Vec<String>,
    /// All that the gate runs.
    #[arg(long)]
    pub(crate) ci: bool,
    /// A scenario file anywhere; its header may be missing.
    #[arg(long, value_name = "FILE")]
    pub(crate) script: Vec<PathBuf>,
    /// Keep the run's folder, with the work disk.
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

#[derive(Args, Debug)]
pub(crate) struct Packages {
    /// Another release of Debian than this machine's, and so another Xen and Linux: bookworm has Xen 4.17, trixie
    /// 4.20.
    #[arg(long, value_name = "RELEASE", value_parser = release)]
    pub(crate) debian: Option<String>,
}

/// A name like a release's: it becomes a folder's, and part of a line of apt's.
fn release(name: &str) -> Result<String, String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Err("a release's name is lower-case letters, such as trixie".to_owned());
    }
    Ok(name.to_owned())
}

#[derive(Args, Debug)]
pub(crate) struct Machine {
    #[command(flatten)]
    pub(crate) packages: Packages,
    /// Use the processor's virtualisation, where it can nest; else all is emulated.
    #[arg(long)]
    kvm: bool,
    /// The machine's memory in MiB; Dom0 has half of it, at most 2048 [default: 4096, or the scenario's].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1024..=65536))]
    memory: Option<u32>,
    /// The machine's CPUs.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Emulate CPUs by one thread (`single`: PVH guests need it) or one each (`multi`)
    /// [default: multi, or the scenario's].
    #[arg(long, value_name = "HOW")]
    thread: Option<Threads>,
    /// Take the project's programs, static ones, from this folder instead of building them.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) programs: Option<PathBuf>,
    /// Seconds after which a scenario has failed [default: 900, or the scenario's].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

impl Machine {
    /// The machine for `scenario`: what was asked for here, else what that wants.
    pub(crate) fn options(&self, scenario: Option<&Scenario>) -> Options {
        let mut options = Options::default();
        options.kvm = self.kvm;
        options.cpus = self.cpus;
        options.programs = self.programs.clone();
        if let Some(memory) = self.memory.or(scenario.map(|scenario| scenario.memory_mib)) {
            options.memory_mib = memory;
        }
        if let Some(threads) = self.thread.or(scenario.map(|scenario| scenario.threads)) {
            options.threads = threads;
        }
        options
    }
}
