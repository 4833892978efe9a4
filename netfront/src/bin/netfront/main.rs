//! `netfront`: a network interface that another domain serves, used from the command line.

mod args;
mod attach;
mod bench;
mod info;
mod tap;

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
            eprintln!("netfront: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Info(_) | Command::Tap(_) => join(args),
        Command::Bench(options) => {
            bench::check(options)?;
            join(args)
        }
        Command::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(*shell, &mut command, "netfront", &mut std::io::stdout());
            Ok(())
        }
        Command::Man => {
            clap_mangen::Man::new(Args::command()).render(&mut std::io::stdout())?;
            Ok(())
        }
    }
}

/// Finds the domain to be, and goes on as that.
fn join(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::listen()?;
    let found = hypervisor::find::hypervisor()?;
    eprintln!("netfront: {}", found.how());
    match found {
        Found::Xen(domain) => with(args, Joined { domain, stop, machine: true }),
        Found::Embedded(found) => {
            let domain = attach::join(&found, args)?;
            with(args, Joined { domain, stop, machine: false })
        }
    }
}

fn with<D: Domain>(args: &Args, joined: Joined<D>) -> anyhow::Result<()> {
    match &args.command {
        Command::Info(options) => info::run(args, options, joined),
        Command::Tap(options) => tap::run(args, options, joined),
        Command::Bench(options) => bench::run(args, options, joined),
        Command::Completions { .. } | Command::Man => Ok(()),
    }
}
