//! The commands that look at domains or change them.

use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use hypervisor::HostError;
use hypervisor::domain::{DomainState, Domains as _};
use hypervisor::embedded::{Control, Place};
use serde_json::json;

use crate::amount::Kib;
use crate::args::{Output, Sched};
use crate::show;

/// `hypervisor list`.
pub(crate) fn list(place: &Place, output: Output) -> anyhow::Result<ExitCode> {
    let domains = connect(place)?.list()?;
    if output.json {
        let all: Vec<_> = domains.iter().map(show::domain_as_json).collect();
        show::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))
    } else {
        show::print(&show::table(&domains))
    }
}

/// `hypervisor info`.
pub(crate) fn info(place: &Place, output: Output) -> anyhow::Result<ExitCode> {
    let control = connect(place)?;
    let (info, pid) = (control.info()?, control.pid()?);
    let (folder, store) = (place.folder(), place.store_socket());
    if output.json {
        let all = json!({
            "hypervisor": "embedded",
            "pid": pid,
            "place": folder,
            "store": store,
            "total_kib": info.total_kib,
            "free_kib": info.free_kib,
            "domains": info.domains,
            "unenforced": info.unenforced,
        });
        return show::print(&format!("{}\n", serde_json::to_string_pretty(&all)?));
    }
    let mut text = format!(
        "hypervisor  embedded, in {}, process {pid}\nstore       {}\nmemory      {}, of which {} are free\n\
         domains     {}\n",
        folder.display(),
        store.display(),
        Kib(info.total_kib),
        Kib(info.free_kib),
        info.domains
    );
    for item in &info.unenforced {
        text.push_str(&format!("UNENFORCED  {item}\n"));
    }
    show::print(&text)
}

/// `hypervisor pause` and `unpause`.
pub(crate) fn pause(place: &Place, domain: &str, paused: bool) -> anyhow::Result<ExitCode> {
    let control = connect(place)?;
    control.pause(control.find(domain)?.id, paused)?;
    Ok(ExitCode::SUCCESS)
}

/// `hypervisor destroy`.
pub(crate) fn destroy(place: &Place, domain: &str) -> anyhow::Result<ExitCode> {
    let control = connect(place)?;
    control.destroy(control.find(domain)?.id)?;
    Ok(ExitCode::SUCCESS)
}

/// `hypervisor mem-set`.
pub(crate) fn mem_set(place: &Place, domain: &str, size: Kib) -> anyhow::Result<ExitCode> {
    let control = connect(place)?;
    control.set_memory_target(control.find(domain)?.id, size.0)?;
    Ok(ExitCode::SUCCESS)
}

/// `hypervisor sched`.
pub(crate) fn sched(place: &Place, args: &Sched) -> anyhow::Result<ExitCode> {
    let control = connect(place)?;
    let found = control.find(&args.domain)?;
    if args.weight.is_none() && args.cap.is_none() {
        let spec = &found.spec;
        return show::print(&if args.output.json {
            let all = json!({
                "id": found.id.get(),
                "name": spec.name,
                "weight": spec.weight,
                "cap": spec.cap,
            });
            format!("{all}\n")
        } else {
            format!("{}: weight {}, cap {}\n", spec.name, spec.weight, spec.cap)
        });
    }
    let weight = args.weight.unwrap_or(found.spec.weight);
    let cap = args.cap.unwrap_or(found.spec.cap);
    control.set_scheduling(found.id, weight, cap)?;
    Ok(ExitCode::SUCCESS)
}

/// The hypervisor that runs at `place`, or how to get one.
fn connect(place: &Place) -> anyhow::Result<Control> {
    let folder = place.folder().display();
    match Control::connect(place) {
        Err(HostError { errno: libc::ENOENT | libc::ECONNREFUSED, .. }) => Err(anyhow!(
            "no hypervisor runs in {folder}; start one with `hypervisor run`, or name another \
             folder with --place"
        )),
        other => other.context("the hypervisor cannot be reached"),
    }
}

/// Letters as xl shows them: running, blocked, paused, shut down, crashed, dying.
pub(crate) fn letters(state: DomainState) -> &'static str {
    match state {
        DomainState::Running => "r-----",
        DomainState::Paused => "--p---",
        DomainState::Dying => "-----d",
        _ => "------",
    }
}
