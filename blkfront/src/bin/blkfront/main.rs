//! `blkfront`: a disk that another domain serves, used from the command line.

mod args;
mod attach;
mod bench;
mod discard;
mod info;
mod nbd;
mod pattern;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use hypervisor::find::Found;
use hypervisor::frontend::host::Stop;
use hypervisor::host::Domain;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command};
use crate::attach::Joined;

fn main() -> ExitCode {
    let args = Args::parse();
    let quiet = EnvFilter::try_from_env("DOMKIT_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(quiet)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkfront: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Bench(options) => {
            bench::check(options)?;
            join(args, bench::lent(args, options))
        }
        Command::Info(_)
        | Command::Read(_)
        | Command::Write(_)
        | Command::Discard(_)
        | Command::Nbd(_) => join(args, 0),
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut Args::command(),
                "blkfront",
                &mut std::io::stdout(),
            );
            Ok(())
        }
        Command::Man => {
            clap_mangen::Man::new(Args::command()).render(&mut std::io::stdout())?;
            Ok(())
        }
    }
}

/// Finds the domain to be, with room for `extra` bytes of granted memory besides what a disk itself
/// needs, and goes on as that.
fn join(args: &Args, extra: u64) -> anyhow::Result<()> {
    let stop = Stop::listen()?;
    let found = hypervisor::find::hypervisor()?;
    eprintln!("blkfront: {}", found.how());
    match found {
        Found::Xen(domain) => with(args, Joined { domain, stop, machine: true }),
        Found::Embedded(found) => {
            let domain = attach::join(&found, args, extra)?;
            with(args, Joined { domain, stop, machine: false })
        }
    }
}

fn with<D: Domain>(args: &Args, joined: Joined<D>) -> anyhow::Result<()> {
    match &args.command {
        Command::Info(options) => info::run(args, options, joined),
        Command::Read(options) => transfer::read(args, options, joined),
        Command::Write(options) => transfer::write(args, options, joined),
        Command::Discard(options) => discard::run(args, options, joined),
        Command::Bench(options) => bench::run(args, options, joined),
        Command::Nbd(options) => nbd::run(args, options, joined),
        Command::Completions { .. } | Command::Man => Ok(()),
    }
}
