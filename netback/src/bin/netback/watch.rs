//! `netback --watch`: starts `netback --device` for each device that a toolstack makes.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, bail};
use hypervisor::DomId;
use hypervisor::backend::Mailbox;
use hypervisor::backend::watch::{self, Claim, Devices, Keeper};
use hypervisor::daemon::program::Program;
use hypervisor::daemon::takeover::Former;
use hypervisor::daemon::watcher::{self, WatcherDesk};
use hypervisor::daemon::{outcome, signals};
use hypervisor::embedded::Place;
use hypervisor::find::{self, Found};
use hypervisor::host::Domain;
use netback::device::KIND;
use netback::watch::{All, kernel_serves};
use nix::sys::signal::SigSet;
use serde_json::json;

use crate::options::{AllowedMac, Serve};
use crate::start;

/// What is kept outside the process are notes on the rings themselves, which have one form.
const FORMAT: u64 = 1;

/// Serves every interface.
pub(crate) fn run(options: &Serve) -> Result<()> {
    let signals = signals::hold_with_children()?;
    let found = find::hypervisor()?;
    outcome::say(options.json, &found.how(), &json!({ "hypervisor": found.how() }));
    match found {
        Found::Xen(domain) => {
            if kernel_serves(Path::new("/")) {
                bail!(
                    "the kernel's xen-netback is loaded, and takes every interface that a toolstack \
                     makes; unload it (modprobe -r xen-netback)"
                );
            }
            let place = Place::standard();
            place.prepare()?;
            if let Some((mut former, _)) = former(options, &place)? {
                former.ask(&yielding())?;
            }
            over(options, true, signals, &domain, &place)
        }
        Found::Embedded(found) => {
            let domain = match former(options, found.place())? {
                Some((mut former, domain)) => {
                    let entered = found.enter(domain)?;
                    former.ask(&yielding())?;
                    entered
                }
                None => start::join(&found)?,
            };
            over(options, false, signals, &domain, found.place())
        }
    }
}

/// The watcher to take over from, if we are to and there is one.
fn former(options: &Serve, place: &Place) -> Result<Option<(Former, DomId)>> {
    if !options.takeover {
        return Ok(None);
    }
    let former = watcher::former(start::NAME, place.folder(), find::named_domain()?)?;
    if former.is_none() {
        tracing::info!("no watcher runs; beginning");
    }
    Ok(former)
}

fn yielding() -> watcher::Request {
    watcher::Request::Handover { formats: vec![FORMAT] }
}

/// Watches as `domain`.
fn over<D: Domain>(
    options: &Serve,
    on_xen: bool,
    signals: SigSet,
    domain: &D,
    place: &Place,
) -> Result<()> {
    let store = domain.open_store()?;
    let mailbox = Mailbox::new()?;
    signals::pass_on_events(signals, mailbox.slot())?;
    let claims = vec![Claim { kind: KIND.frontend.to_owned(), ours_only: false }];
    let devices = Devices { me: domain.id(), kind: KIND, claims, choice: All };
    // On Xen a process is in the domain that it runs in.
    let enter = (!on_xen).then(|| domain.id());
    let folder = place.folder().to_owned();
    let starter = Program::own(start::NAME, passed_on(options), folder, enter)?;
    let mut keeper = Keeper::new(starter.taking_over(options.takeover));
    let (board, slot) = (keeper.board(), mailbox.slot());
    let desk = WatcherDesk { me: domain.id(), format: FORMAT, board, slot };
    let listening = watcher::listen(start::NAME, place.folder(), desk)?;
    let kinds: Vec<_> = devices.directories().collect();
    let line = format!("ready: watching {}", kinds.join(", "));
    outcome::ready(options.json, &line, &json!({ "ready": { "watching": kinds } }));
    let ended = watch::run(&store, &devices, &mut keeper, &mailbox);
    drop(listening);
    Ok(ended?)
}

/// What holds for each device as well.
fn passed_on(options: &Serve) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.push(name.into());
            arguments.push(value.into());
        }
    };
    add("--bridge", options.bridge.as_ref().map(ToString::to_string));
    add("--queues", options.queues.map(|queues| queues.to_string()));
    let rate = |speed: Option<crate::options::Speed>| Some(speed?.0?.to_string());
    add("--rate", rate(options.rate));
    add("--rate-rx", rate(options.rate_rx));
    add(
        "--allow-mac",
        options.allow_mac.map(|allowed| match allowed {
            AllowedMac::Any => "any".to_owned(),
            AllowedMac::Only(mac) => mac.to_string(),
        }),
    );
    for (set, flag) in
        [(options.poll, "--poll"), (options.no_poll, "--no-poll"), (options.json, "--json")]
    {
        if set {
            arguments.push(flag.into());
        }
    }
    arguments
}
