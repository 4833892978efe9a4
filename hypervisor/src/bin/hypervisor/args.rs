//! What may be written on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::amount::Kib;

const EXAMPLES: &str = "\
Examples:
  hypervisor run --memory 4G              run a hypervisor with 4 GiB for domains
  hypervisor create guest --memory 256M   make a domain that waits for a program to join it
  hypervisor create bench --cap 50 -- fio job.fio
                                          run a program in a domain with half a CPU
  hypervisor list                         show all domains
  hypervisor sched bench --weight 512     give one twice the usual share of CPU time
  hypervisor mem-set guest 128M           take half of a domain's memory back
  hypervisor destroy guest                end one

Environment:
  DOMKIT_RUN         the folder in which the hypervisor is found (see --place)
  DOMKIT_HYPERVISOR  `embedded` uses it even on a machine that runs on Xen; so does --place

On Xen, `list` and `info` show what there is, and the other commands name xl's that do it.";

/// Run domkit's embedded hypervisor, and control its domains
///
/// A domain is one or more processes that joined the hypervisor. It has memory, virtual CPUs and a
/// share of CPU time, can grant its pages to other domains, has event channels, and meets others in
/// the store.
#[derive(Debug, Parser)]
#[command(name = "hypervisor", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    /// The folder in which the hypervisor is found [default: $DOMKIT_RUN, else /run/domkit for
    /// root, else $XDG_RUNTIME_DIR/domkit]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) place: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a hypervisor until SIGTERM or SIGINT
    ///
    /// When it is ready it prints one line that begins with `ready:` and, where systemd started
    /// it, tells systemd. All domains end with it. What this machine does not let it enforce is
    /// said in lines that contain UNENFORCED; it goes on without.
    Run(Run),
    /// Make a domain, and run a program in it
    ///
    /// With a program, this process becomes it, inside the domain: its CPU time and memory are
    /// limited from its first instruction on, DOMKIT_DOMAIN tells it which domain to join, and the
    /// domain ends with its last process. Without one, the domain waits, paused, for a program
    /// that is started with DOMKIT_DOMAIN set to its number, and stays until it is destroyed.
    ///
    /// If no hypervisor runs, one is started, which ends with the last domain.
    Create(Create),
    /// Show all domains: number, memory, vCPUs, state and CPU time
    ///
    /// States: r may run, p paused, d dying (gone, but a peer still has pages of it mapped).
    #[command(visible_alias = "ls")]
    List(Output),
    /// Show what the hypervisor has, and what it cannot enforce
    ///
    /// On Xen: its version, this domain's number, limits of the kernel's Xen devices, and which of
    /// them are missing and what loads them.
    Info(Output),
    /// Stop all processes of a domain
    Pause {
        /// Its name or number
        domain: String,
    },
    /// Let a paused domain go on
    Unpause {
        /// Its name or number
        domain: String,
    },
    /// End a domain at once: its processes are killed
    Destroy {
        /// Its name or number
        domain: String,
    },
    /// Set a domain's memory target
    ///
    /// What a domain gives back is free for others; it can be raised again to what the domain was
    /// made with, as long as that much is free.
    MemSet {
        /// Its name or number
        domain: String,
        /// The target, such as 512K, 64M or 2G; a bare number is MiB
        size: Kib,
    },
    /// Set or show a domain's share of CPU time
    Sched(Sched),
    /// Write completions for a shell to standard output
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the manual page to standard output, or all of them to a folder
    Man {
        /// The folder
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Memory to give to domains, such as 512M or 4G; a bare number is MiB [default: three
    /// quarters of this machine's]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Kib>,
    /// End when the last domain has gone
    #[arg(long)]
    pub(crate) until_empty: bool,
    /// Return when it is ready, and leave it running; it logs to `hypervisor.log` in its folder
    #[arg(long)]
    pub(crate) detach: bool,
    /// Be the process that is left running
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) detached: bool,
    /// Print the `ready` line as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Its name, unlike any other domain's
    pub(crate) name: String,
    /// Its memory, such as 512K, 64M or 2G; a bare number is MiB
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) memory: Kib,
    /// Its virtual CPUs: it never gets more CPU time than these could use
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) vcpus: u32,
    /// Its share of CPU time against others', 1 to 65535
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) weight: u16,
    /// The most CPU time it gets, in percent of one CPU; 0 is no limit
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    pub(crate) cap: u16,
    /// Pause it before its program starts
    #[arg(long)]
    pub(crate) paused: bool,
    /// Print the new domain as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The program to run in it
    #[arg(last = true, value_name = "PROGRAM ARGS")]
    pub(crate) program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Output {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Sched {
    /// Its name or number
    pub(crate) domain: String,
    /// Its share of CPU time against others', 1 to 65535; 256 is usual
    #[arg(long, value_name = "N")]
    pub(crate) weight: Option<u16>,
    /// The most CPU time it gets, in percent of one CPU; 0 is no limit
    #[arg(long, value_name = "PERCENT")]
    pub(crate) cap: Option<u16>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definitions_agree_with_each_other() {
        use clap::CommandFactory as _;
        super::Args::command().debug_assert();
    }
}
