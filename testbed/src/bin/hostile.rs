//! `hostile`: plays hostile guests against a running blkback, or netback.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use hypervisor::embedded::Place;
use testbed::hostile::{self, Case, Stage, honest, net};

/// Plays hostile guests against a blkback, or a netback, that waits for a guest on this machine.
#[derive(Parser)]
#[command(name = "hostile")]
struct Options {
    /// The name of the guest that the backend waits for.
    #[arg(long, default_value = "guest", value_name = "NAME")]
    domain_name: String,
    /// Plays the cases over and over for so long; each at least once.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seconds: u64,
    /// Plays against a netback, on whose bridge the host is 10.77.0.1, instead of a blkback.
    #[arg(long)]
    network: bool,
    /// Which cases to play, or `list`; without any, all.
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let all: Vec<&Case> =
        if options.network { net::all().collect() } else { hostile::all().collect() };
    if options.cases.iter().any(|case| case == "list") {
        for case in all {
            println!("{:22} {}", case.name, case.about);
        }
        return Ok(());
    }
    let mut cases: Vec<&Case> = Vec::new();
    for name in &options.cases {
        match all.iter().find(|case| case.name == name) {
            Some(case) => cases.push(*case),
            None => bail!("case '{name}': there is none of that name; see 'hostile list'"),
        }
    }
    if cases.is_empty() {
        cases = all;
    }
    let kind = if options.network { "vif" } else { "vbd" };
    let stage = Stage { place: Place::standard(), name: options.domain_name.clone(), kind };
    let (began, lasts) = (Instant::now(), Duration::from_secs(options.seconds));
    loop {
        for case in &cases {
            (case.play)(&stage).map_err(|error| error.context(case.name))?;
            if options.network {
                net::visit(&stage)?;
            } else {
                honest::visit(&stage, 16)?;
            }
            println!("{}: served on", case.name);
        }
        if began.elapsed() >= lasts {
            return Ok(());
        }
    }
}
