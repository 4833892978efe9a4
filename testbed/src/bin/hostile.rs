//! `hostile`: plays hostile guests against a running blkback.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use hypervisor::embedded::Place;
use testbed::hostile::{self, Case, Stage, honest};

/// Plays hostile guests against a blkback that waits for a guest on this machine.
#[derive(Parser)]
#[command(name = "hostile")]
struct Options {
    /// The name of the guest that the backend waits for.
    #[arg(long, default_value = "guest", value_name = "NAME")]
    domain_name: String,
    /// Plays the cases over and over for so long; each at least once.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seconds: u64,
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
    if options.cases.iter().any(|case| case == "list") {
        for case in hostile::all() {
            println!("{:22} {}", case.name, case.about);
        }
        return Ok(());
    }
    let mut cases: Vec<&Case> = Vec::new();
    for name in &options.cases {
        match hostile::all().find(|case| case.name == name) {
            Some(case) => cases.push(case),
            None => bail!("case '{name}': there is none of that name; see 'hostile list'"),
        }
    }
    if cases.is_empty() {
        cases.extend(hostile::all());
    }
    let stage = Stage { place: Place::standard(), name: options.domain_name.clone() };
    let (began, lasts) = (Instant::now(), Duration::from_secs(options.seconds));
    loop {
        for case in &cases {
            (case.play)(&stage).map_err(|error| error.context(case.name))?;
            honest::visit(&stage, 16)?;
            println!("{}: served on", case.name);
        }
        if began.elapsed() >= lasts {
            return Ok(());
        }
    }
}
