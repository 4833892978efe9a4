//! `blkback`: serves a disk image to a guest domain, and `blkback ctl`, which talks to it.

mod ctl;
mod device;
mod options;
mod signals;
mod size;
mod start;
mod stats;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tracing_subscriber::EnvFilter;

use crate::options::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .with_target(false)
        .init();
    let done = match &cli.command {
        None if cli.serve.watch => watch::run(&cli.serve, None),
        None => match &cli.serve.device {
            Some(spot) => device::run(&cli.serve, spot),
            None => start::run(&cli.serve),
        },
        Some(Command::Ctl(ctl)) => ctl::run(ctl),
        Some(Command::Completions { shell }) => {
            let mut command = Cli::command();
            clap_complete::generate(*shell, &mut command, "blkback", &mut std::io::stdout());
            Ok(())
        }
        Some(Command::Man) => {
            clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()).map_err(Into::into)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkback: {error:#}");
            ExitCode::FAILURE
        }
    }
}
