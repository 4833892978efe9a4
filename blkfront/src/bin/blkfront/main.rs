//! `blkfront`: a disk that another domain serves, used from the command line.

mod args;
mod attach;
mod bench;
mod info;
mod nbd;
mod pattern;
mod size;
mod stop;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command};

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
        Command::Info(options) => info::run(args, options),
        Command::Read(options) => transfer::read(args, options),
        Command::Write(options) => transfer::write(args, options),
        Command::Bench(options) => bench::run(args, options),
        Command::Nbd(options) => nbd::run(args, options),
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
