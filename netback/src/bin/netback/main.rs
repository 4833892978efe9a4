//! `netback`: serves a network interface to a guest domain, and `netback ctl`, which talks to it.

mod ctl;
mod device;
mod machine;
mod options;
mod start;
mod stats;
mod takeover;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use hypervisor::backend::watch::HANDED_OVER;
use hypervisor::daemon::outcome;

use crate::options::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    outcome::log();
    let done = match &cli.command {
        None if cli.serve.watch => watch::run(&cli.serve),
        None if cli.serve.vhost_user.is_some() => machine::run(&cli.serve),
        None => match &cli.serve.device {
            Some(spot) => match device::run(&cli.serve, spot) {
                Ok(device::Left::Over) => Ok(()),
                Ok(device::Left::HandedOver) => return ExitCode::from(HANDED_OVER),
                Err(error) => Err(error),
            },
            None => start::run(&cli.serve),
        },
        Some(Command::Ctl(ctl)) => ctl::run(ctl),
        Some(Command::Completions { shell }) => {
            let mut command = Cli::command();
            clap_complete::generate(*shell, &mut command, "netback", &mut std::io::stdout());
            Ok(())
        }
        Some(Command::Man) => {
            clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()).map_err(Into::into)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netback: {error:#}");
            ExitCode::FAILURE
        }
    }
}
