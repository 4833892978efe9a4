//! `testbed`: real Xen in QEMU, to run scenarios in and to try things in.

mod options;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{CommandFactory as _, Parser as _};
use testbed::programs::{self, Build};
use testbed::xen::scenario::{self, Scenario};
use testbed::xen::{self, Bed, Verdict};

use crate::options::{Cli, Command, Machine, Packages, Run};

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Prepare { refresh, packages } => {
            let bed = prepare(refresh, &packages)?;
            println!("ready: {}", bed.file("").display());
        }
        Command::Run(run) => return scenarios(&run),
        Command::Shell { machine, keep, command: None } => {
            let logs = xen::shell(&ready(&machine)?, &machine.options(None), keep)?;
            eprintln!("logs: {}", logs.display());
        }
        Command::Shell { machine, keep, command: Some(command) } => {
            return commands(&machine, keep, &command);
        }
        Command::List { json } => list(json)?,
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "testbed", &mut std::io::stdout());
        }
        Command::Man => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The bed, and the programs that go into it.
fn ready(machine: &Machine) -> Result<Bed> {
    let bed = prepare(false, &machine.packages)?;
    if machine.programs.is_none() {
        eprintln!("testbed: building the project's programs");
        programs::all(Build::Static)?;
    }
    Ok(bed)
}

fn prepare(refresh: bool, packages: &Packages) -> Result<Bed> {
    let release = packages.debian.as_deref();
    Bed::prepare(&xen::cache_folder(), release, refresh, &|what| eprintln!("testbed: {what}"))
}

fn list(json: bool) -> Result<()> {
    let all = scenario::all()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    for scenario in all {
        let ci = if scenario.ci { "ci" } else { "" };
        println!("{:18} {:>8} {ci:3} {}", scenario.name, scenario.takes, scenario.about);
    }
    Ok(())
}

fn scenarios(run: &Run) -> Result<ExitCode> {
    let mut wanted = Vec::new();
    for name in &run.scenarios {
        wanted.push(Scenario::named(name)?);
    }
    if run.ci {
        wanted.extend(scenario::all()?.into_iter().filter(|scenario| scenario.ci));
    }
    for file in &run.script {
        wanted.push(Scenario::of_script(file)?);
    }
    if wanted.is_empty() {
        bail!("name a scenario (see 'testbed list'), or give --ci or --script FILE");
    }
    let bed = ready(&run.machine)?;
    let mut failed = 0_u32;
    let several = wanted.len() > 1;
    for scenario in wanted {
        if !one(&bed, scenario, &run.machine, run.keep)? {
            failed = failed.saturating_add(1);
        }
    }
    if several {
        println!("{failed} failed");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one scenario and tells of it; whether it passed.
fn one(bed: &Bed, mut scenario: Scenario, machine: &Machine, keep: bool) -> Result<bool> {
    if let Some(seconds) = machine.timeout {
        scenario.limit = Duration::from_secs(seconds);
    }
    println!("{}: {}", scenario.name, scenario.about);
    let options = machine.options(Some(&scenario));
    let mut progress = |line: &str| {
        // Nobody may be listening any more; the log has it too.
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    let (verdict, logs) = xen::run(bed, &scenario, &options, keep, &mut progress)?;
    match &verdict {
        Verdict::Passed => println!("{}: PASSED; logs: {}", scenario.name, logs.display()),
        Verdict::Failed(why) => {
            println!("{}: FAILED: {why}; logs: {}", scenario.name, logs.display());
        }
    }
    Ok(verdict == Verdict::Passed)
}

/// Runs shell commands in a Dom0 of their own.
fn commands(machine: &Machine, keep: bool, commands: &str) -> Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("shell.sh");
    std::fs::write(&file, commands)?;
    let scenario = Scenario::of_script(Path::new(&file))?;
    let passed = one(&ready(machine)?, scenario, machine, keep)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
