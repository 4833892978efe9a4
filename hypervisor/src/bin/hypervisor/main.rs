//! The tool `hypervisor`: runs the embedded hypervisor, and controls domains as xl does. On Xen it
//! shows what there is.
//!
//! Exit status: 0 done, 1 not done, 2 not understood, 3 another hypervisor runs in the same folder
//! (`run` only).

mod amount;
mod args;
mod control;
mod create;
mod on_xen;
mod pages;
mod run;
mod show;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use hypervisor::embedded::Place;
use hypervisor::find::{self, Kind};

use args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    log_to_stderr();
    done(args).unwrap_or_else(|error| {
        eprintln!("hypervisor: {error:#}");
        ExitCode::FAILURE
    })
}

fn done(args: Args) -> anyhow::Result<ExitCode> {
    let asks = !matches!(
        args.command,
        Command::Run(_) | Command::Completions { .. } | Command::Man { .. }
    );
    // A folder is an embedded hypervisor's.
    if asks && args.place.is_none() && find::kind()? == Kind::Xen {
        return on_xen::run(&args.command);
    }
    let place = args.place.map_or_else(Place::standard, Place::at);
    match args.command {
        Command::Run(options) => run::run(place, &options),
        Command::Create(options) => create::create(&place, &options),
        Command::List(output) => control::list(&place, output),
        Command::Info(output) => control::info(&place, output),
        Command::Pause { domain } => control::pause(&place, &domain, true),
        Command::Unpause { domain } => control::pause(&place, &domain, false),
        Command::Destroy { domain } => control::destroy(&place, &domain),
        Command::MemSet { domain, size } => control::mem_set(&place, &domain, size),
        Command::Sched(options) => control::sched(&place, &options),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { folder } => pages::man(folder.as_deref()),
    }
}

/// What is to be known but is no result goes to standard error; `RUST_LOG` says how much of it.
fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::filter::LevelFilter;

    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
