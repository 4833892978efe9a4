//! `blkback --watch`: starts `blkback --device` for each device that a toolstack makes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use blkback::device::KIND;
use blkback::journal;
use blkback::watch::{Free, kernel_serves};
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
use nix::sys::signal::SigSet;
use serde_json::json;

use crate::options::{self, EngineName, OnErrorName, ReachName, Serve};
use crate::start;

/// Serves every device that is ours, and with an `image`, of those only the ones configured for it.
pub(crate) fn run(options: &Serve, image: Option<&Path>) -> Result<()> {
    let signals = signals::hold_with_children()?;
    let image = image.map(canonical).transpose()?;
    let found = find::hypervisor()?;
    outcome::say(options.json, &found.how(), &json!({ "hypervisor": found.how() }));
    match found {
        Found::Xen(domain) => {
            let place = Place::standard();
            place.prepare()?;
            if let Some((mut former, _)) = former(options, &place)? {
                former.ask(&yielding())?;
            }
            let system = PathBuf::from("/");
            over(options, (image, Some(system)), signals, &domain, &place)
        }
        Found::Embedded(found) => {
            let domain = match former(options, found.place())? {
                Some((mut former, domain)) => {
                    let entered = found.enter(domain)?;
                    former.ask(&yielding())?;
                    entered
                }
                None => start::join(&found, 0)?,
            };
            over(options, (image, None), signals, &domain, found.place())
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
    watcher::Request::Handover { formats: vec![journal::VERSION] }
}

fn canonical(image: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(image).with_context(|| format!("image '{}'", image.display()))
}

/// Watches as `domain`; `kernel` is the root of the system whose kernel could have a backend.
fn over<D: Domain>(
    options: &Serve,
    (image, kernel): (Option<PathBuf>, Option<PathBuf>),
    signals: SigSet,
    domain: &D,
    place: &Place,
) -> Result<()> {
    let store = domain.open_store()?;
    let mailbox = Mailbox::new()?;
    signals::pass_on_events(signals, mailbox.slot())?;
    let claims = claims(&options.kinds, kernel.as_deref());
    let on_xen = kernel.is_some();
    let choice = Free { image, kernel };
    let devices = Devices { me: domain.id(), kind: KIND, claims, choice };
    // On Xen a process is in the domain that it runs in.
    let enter = (!on_xen).then(|| domain.id());
    let folder = place.folder().to_owned();
    let starter = Program::own(start::NAME, passed_on(options), folder, enter)?;
    let mut keeper = Keeper::new(starter.taking_over(options.takeover));
    let (board, slot) = (keeper.board(), mailbox.slot());
    let desk = WatcherDesk { me: domain.id(), format: journal::VERSION, board, slot };
    let listening = watcher::listen(start::NAME, place.folder(), desk)?;
    ready(options, &devices);
    let ended = watch::run(&store, &devices, &mut keeper, &mailbox);
    drop(listening);
    Ok(ended?)
}

/// What is served of each kind: where nothing was said, all that nobody else could be meant to
/// serve.
fn claims(kinds: &[String], kernel: Option<&Path>) -> Vec<Claim> {
    if kinds.is_empty() {
        let claim = |kind: &str, ours_only| Claim { kind: kind.to_owned(), ours_only };
        return vec![claim("vbd3", false), claim("vbd", true)];
    }
    if kernel.is_some_and(kernel_serves) && kinds.iter().any(|kind| kind == "vbd") {
        tracing::warn!(
            "the kernel's xen-blkback is loaded: of the devices of kind vbd, only those with \
             script=block-domkit are served; unload it for the others (modprobe -r xen-blkback)"
        );
    }
    kinds.iter().map(|kind| Claim { kind: kind.clone(), ours_only: false }).collect()
}

fn ready(options: &Serve, devices: &Devices<Free>) {
    let kinds: Vec<_> = devices.directories().collect();
    let only = match &devices.choice.image {
        Some(image) => format!(" for {}", image.display()),
        None => String::new(),
    };
    let line = format!("ready: watching {}{only}", kinds.join(", "));
    outcome::ready(options.json, &line, &json!({ "ready": { "watching": kinds } }));
}

/// What holds for each device as well.
fn passed_on(options: &Serve) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: String| {
        arguments.push(name.into());
        arguments.push(value.into());
    };
    if let Some(size) = options.sector_size {
        add("--sector-size", size.to_string());
    }
    if let Some(queues) = options.queues {
        add("--queues", queues.to_string());
    }
    add("--ring-page-order", options.ring_page_order.to_string());
    add("--direct", options.direct.to_string());
    if options.engine != EngineName::Auto {
        add("--engine", options::name(options.engine));
    }
    if options.on_error != OnErrorName::Report {
        add("--on-error", options::name(options.on_error));
    }
    if options.reach != ReachName::Auto {
        add("--reach", options::name(options.reach));
    }
    add("--limit-iops", options.limit_iops.to_string());
    add("--limit-bytes", options.limit_bytes.to_string());
    for (set, flag) in [
        (options.poll, "--poll"),
        (options.no_poll, "--no-poll"),
        (options.json, "--json"),
        (options.no_discard, "--no-discard"),
        (options.no_journal, "--no-journal"),
    ] {
        if set {
            arguments.push(flag.into());
        }
    }
    arguments
}
