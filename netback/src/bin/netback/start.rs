//! `netback`: from the command line to the loop, and back.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use std::{fs, thread};

use anyhow::{Result, bail};
use hypervisor::Error;
use hypervisor::backend::{Plan, Serving, Wanted};
use hypervisor::daemon::control::{Server, socket};
use hypervisor::daemon::{outcome, signals};
use hypervisor::domain::DomainSpec;
use hypervisor::embedded::{self, Place};
use hypervisor::find::{self, Embedded, Found};
use hypervisor::host::Domain;
use netback::connect::xenbus::Offer;
use netback::device::mac::{self, Shown};
use netback::device::{DeviceDesk, Policy, Uplink, Vif, order};
use netback::filter::{Mac, Sources};
use netback::port::inner::Kind;
use nix::sys::signal::SigSet;
use ring::Waiting;
use serde_json::json;

use crate::options::{AllowedMac, Serve};
use crate::stats;
use crate::takeover::{self, Former};

/// Our name, and our domain's where nobody else has it.
pub(crate) const NAME: &str = "netback";
/// The most queues that are offered where nothing was said.
const QUEUES: usize = 4;
/// What the daemon itself needs, in KiB: nothing is granted from it.
const MEMORY_KIB: u64 = 64 * 1024;

/// The guest that is served on the embedded hypervisor where nothing was said.
pub(crate) const GUEST: &str = "guest";

pub(crate) fn run(options: &Serve) -> Result<()> {
    // Before any thread is there, so that all of them leave signals to one.
    let signals = signals::hold()?;
    demand_uplink(options)?;
    let former = takeover::of_ours(options)?;
    let found = find::hypervisor()?;
    outcome::say(options.json, &found.how(), &json!({ "hypervisor": found.how() }));
    match found {
        Found::Xen(domain) => {
            if options.domain.is_none() {
                bail!("there is nobody to serve: name a guest, as in --domain web, or --watch");
            }
            // The kernel's own backend takes every device of kind vif where it is loaded.
            serve(options, (signals, former), &domain, "vif3", &Place::standard())
        }
        Found::Embedded(found) => {
            let domain = match former.as_ref().and_then(|former| former.domain) {
                Some(domain) => found.enter(domain)?,
                None => join(&found)?,
            };
            serve(options, (signals, former), &domain, "vif", found.place())
        }
    }
}

/// Sees to it that what was named is there, before anybody waits for anything.
pub(crate) fn demand_uplink(options: &Serve) -> Result<(), Error> {
    for (name, option) in [(&options.bridge, "--bridge"), (&options.interface, "--interface")] {
        if let Some(name) = name {
            name.demand(option)?;
        }
    }
    Ok(())
}

/// Serves as `domain`, by a backend of kind `kind`; control sockets are at `place`.
fn serve<D: Domain>(
    options: &Serve,
    (signals, former): (SigSet, Option<Former>),
    domain: &D,
    kind: &'static str,
    place: &Place,
) -> Result<()> {
    let control = domain.open_control_store()?;
    let wanted = options.domain.clone().unwrap_or_else(|| Wanted::Name(GUEST.to_owned()));
    if let Wanted::Id(_) = wanted {
        wanted.demand(&control)?;
    }
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let made_up = || mac::made_up(machine.trim(), &wanted.to_string(), options.devid);
    let mac = options.mac.map_or_else(made_up, |mac| mac.0);
    let store = domain.open_store()?;
    let since = former.map_or_else(|| Ok(Instant::now()), Former::hand_over)?;
    place.prepare()?;
    let vif = Arc::new(Vif::new(policy(options, mac)).unserved(since).keeping(place.folder()));
    let rate = options.rate.and_then(|rate| rate.0);
    let plan = Plan {
        me: domain.id(),
        wanted: wanted.clone(),
        order: order::vif(kind, options.devid, mac, options.mtu, rate, options.bridge.as_ref()),
        offer: offer(options, &vif.policy().uplink),
    };
    let serving = Serving::new(domain, &store, &control, &*vif, plan)?;
    let desk = DeviceDesk {
        vif: Arc::clone(&vif),
        board: serving.board(),
        slot: serving.slot(),
        number: options.devid,
        mac: Some(mac),
        wanted: wanted.to_string(),
        me: domain.id(),
    };
    let path = match &options.control {
        Some(path) => path.clone(),
        None => {
            let served = format!("{wanted}-{}", options.devid);
            socket::path_for(NAME, place.folder(), &served)
        }
    };
    let listening = Server::start(&path, desk)?;
    signals::pass_on(signals, serving.slot())?;
    ready(options, mac, &wanted, listening.path());
    let printer = options.stats.then(|| stats::print(&vif, options.json)).transpose()?;

    let ended = serving.run();
    drop(printer);
    drop(listening);
    let ended = ended?;
    outcome::say(options.json, &ended.to_string(), &json!({ "ended": ended.to_string() }));
    Ok(())
}

/// Becomes a domain.
pub(crate) fn join(found: &Embedded) -> Result<embedded::Domain, Error> {
    let mut spec = DomainSpec::new(NAME);
    spec.memory_kib = MEMORY_KIB;
    found.join_beside(&spec)
}

/// What a frontend may choose from.
pub(crate) fn offer(options: &Serve, uplink: &Uplink) -> Offer {
    let wanted =
        if options.pcap.is_some() { 1 } else { options.queues.unwrap_or_else(usual_queues) };
    Offer { queues: uplink.queues(wanted), control_ring: true }
}

/// How an interface with the address `mac` is served, as the command line has it.
pub(crate) fn policy(options: &Serve, mac: Mac) -> Policy {
    let uplink = match (&options.interface, options.port) {
        (Some(name), _) => Uplink::Packet(name.clone()),
        (None, Some(kind)) => Uplink::Inner(kind),
        (None, None) => {
            let (name, bridge) = (options.tap.clone(), options.bridge.clone());
            Uplink::Tap { name, bridge, up: true, kept: false }
        }
    };
    let mut policy = Policy::new(uplink);
    policy.sources = Sources::of(
        match options.allow_mac {
            Some(AllowedMac::Any) => None,
            Some(AllowedMac::Only(mac)) => Some(mac.0),
            None => Some(mac),
        },
        Some(options.allow_ip.clone()).filter(|list| !list.is_empty()),
    );
    policy.mtu = options.mtu;
    policy.tx = options.rate.and_then(|rate| rate.0);
    policy.rx = options.rate_rx.and_then(|rate| rate.0);
    policy.waiting = match (options.poll, options.no_poll) {
        (true, _) => Waiting::Spin,
        (_, true) => Waiting::Sleep,
        _ => Waiting::default(),
    };
    policy.pcap.clone_from(&options.pcap);
    policy
}

/// Queues to offer where nothing was said.
fn usual_queues() -> u16 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors.min(QUEUES)).unwrap_or(1)
}

/// What lies behind an interface, in words.
pub(crate) fn uplink(options: &Serve) -> String {
    match (&options.interface, &options.bridge, options.port) {
        (Some(name), ..) => format!("behind {name}"),
        (None, Some(bridge), _) => format!("on {bridge}"),
        (None, None, Some(kind)) => format!("without a network: {}", kind.name()),
        (None, None, None) => "on no bridge".to_owned(),
    }
}

fn ready(options: &Serve, mac: Mac, wanted: &Wanted, control: &Path) {
    let (mac, devid) = (Shown(mac).to_string(), options.devid);
    let uplink = uplink(options);
    let line = format!(
        "ready: interface {devid} ({mac}, {uplink}) for domain {wanted}; control socket {}",
        control.display()
    );
    let text =
        |name: &Option<netback::port::interface::Name>| name.as_ref().map(ToString::to_string);
    let object = json!({ "ready": {
        "devid": devid, "mac": mac, "mtu": options.mtu, "bridge": text(&options.bridge),
        "interface": text(&options.interface), "port": options.port.map(Kind::name),
        "domain": wanted.to_string(),
        "control": control.display().to_string(),
    }});
    outcome::ready(options.json, &line, &object);
}
