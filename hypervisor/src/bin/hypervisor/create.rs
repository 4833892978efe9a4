//! `hypervisor create`.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use hypervisor::DomId;
use hypervisor::domain::{DomainSpec, Domains as _};
use hypervisor::embedded::{Control, Place};
use hypervisor::find;
use serde_json::json;

use crate::args::Create;

/// Makes a domain and, where a program was named, becomes that program in it.
pub(crate) fn create(place: &Place, args: &Create) -> anyhow::Result<ExitCode> {
    let mut spec = DomainSpec::new(&args.name);
    spec.memory_kib = args.memory.0;
    spec.vcpus = args.vcpus;
    spec.weight = args.weight;
    spec.cap = args.cap;

    let found = find::embedded_at(place)?;
    eprintln!("{}", found.how);
    let control = Control::connect(found.place())?;
    let Some((program, rest)) = args.program.split_first() else {
        let id = control.create(&spec)?;
        if args.paused {
            control.pause(id, true)?;
        }
        println!("{}", describe(id, &spec, args.json));
        return Ok(ExitCode::SUCCESS);
    };
    let id = control.create_until_left(&spec)?;
    if args.paused {
        control.pause(id, true)?;
    }
    // The program has standard output to itself.
    eprintln!("{}", describe(id, &spec, args.json));
    control.place_self(id)?;
    let mut command = Command::new(program);
    command.args(rest);
    command.env("DOMKIT_RUN", found.place().folder()).env(find::DOMAIN_VARIABLE, id.to_string());
    // Comes back only where it cannot be run; the domain then ends as this process does.
    let error = command.exec();
    Err(anyhow::Error::new(error).context(format!("run {} in domain {id}", program.display())))
}

fn describe(id: DomId, spec: &DomainSpec, as_json: bool) -> String {
    if as_json {
        json!({ "id": id.get(), "name": spec.name }).to_string()
    } else {
        format!("domain {id} '{}'", spec.name)
    }
}
