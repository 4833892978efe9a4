//! `netback --device`: serves one device that a toolstack made, as long as it stands.
//!
//! Ends with success where the device is gone, was refused, or was left in order on SIGTERM; with
//! failure where another try may do better. Whoever watches devices starts this for each.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use hypervisor::ConfigError;
use hypervisor::backend::{Adopted, Ended, Hotplug, Mailbox, Serving, Spot, guest, standby};
use hypervisor::daemon::control::{Server, socket};
use hypervisor::daemon::{outcome, program, signals};
use hypervisor::domain::DomainSpec;
use hypervisor::embedded::Place;
use hypervisor::find::{self, Found};
use hypervisor::host::Domain;
use hypervisor::store::Transaction;
use hypervisor::xenbus::{End, State};
use netback::device::{DeviceDesk, KIND, Message, Uplink, Vif, Wish};
use serde_json::json;

use crate::options::Serve;
use crate::{start, stats, takeover};

/// How it ended, where nothing went wrong.
pub(crate) enum Left {
    /// There is nothing left to do at the device.
    Over,
    /// It was left in order for another process to go on with at once.
    HandedOver,
}

pub(crate) fn run(options: &Serve, spot: &Spot) -> Result<Left> {
    let since = program::unserved_since();
    let signals = signals::hold()?;
    let found = find::hypervisor()?;
    let mailbox = Mailbox::new()?;
    signals::pass_on(signals, mailbox.slot())?;
    match found {
        Found::Xen(domain) => {
            let place = Place::standard();
            place.prepare()?;
            serve(options, (spot, since), &domain, place.folder(), mailbox)
        }
        Found::Embedded(found) => {
            let domain = found.join(&DomainSpec::new(spot.name()))?;
            serve(options, (spot, since), &domain, found.place().folder(), mailbox)
        }
    }
}

fn serve<D: Domain>(
    options: &Serve,
    (spot, since): (&Spot, Instant),
    domain: &D,
    folder: &Path,
    mailbox: Mailbox<Message>,
) -> Result<Left> {
    if spot.me != domain.id() {
        let problem =
            format!("belongs to a backend in domain {}, and this is {}", spot.me, domain.id());
        return Err(ConfigError::new("--device", spot, problem).into());
    }
    let store = domain.open_store()?;
    let Some(mut device) = Adopted::find(&store, KIND, spot)? else {
        let problem = "there is no such device; xenstore-ls shows those that there are";
        return Err(ConfigError::new("--device", spot, problem).into());
    };
    if let Ok(control) = domain.open_control_store()
        && let Some(name) = guest::name(&control, spot.front)?
    {
        device.guest.name = name;
    }
    let since = takeover::of_a_toolstacks(options, spot, folder)?.unwrap_or(since);
    let opened = Wish::read(&store, &device).and_then(|wish| {
        let vif = Vif::new(policy(options, &wish, device.hotplug)).unserved(since).keeping(folder);
        vif.open(spot.front, spot.number)?;
        Ok((vif, wish))
    });
    let (vif, wish) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // A guest that uses the interface already is better off waiting for the next try.
            let seat = device.pair.seat(End::Back);
            if seat.own_state(&store, Transaction::NONE)? == State::Connected {
                return Err(error.into());
            }
            tracing::warn!(device = %spot, guest = %device.guest, "refused: {error}");
            standby::refuse(&store, &device, &error.to_string(), &mailbox)?;
            return Ok(Left::Over);
        }
    };

    let vif = Arc::new(vif);
    let name = vif.interface().unwrap_or_default();
    let (slot, wanted) = (mailbox.slot(), device.guest.name.clone());
    let offer = start::offer(options, &vif.policy().uplink);
    let serving = Serving::adopt(domain, &store, &store, &*vif, (device, offer), mailbox);
    let desk = DeviceDesk {
        vif: Arc::clone(&vif),
        board: serving.board(),
        slot,
        number: spot.number,
        mac: Some(wish.mac),
        wanted,
        me: domain.id(),
    };
    let path = options
        .control
        .clone()
        .unwrap_or_else(|| socket::path_named(start::NAME, folder, &spot.name()));
    let listening = Server::start(&path, desk)?;
    let ready = json!({ "ready": { "interface": name, "device": spot.to_string(),
        "control": path.display().to_string() }});
    outcome::say(
        options.json,
        &format!("ready: {name} at {spot}; control socket {}", path.display()),
        &ready,
    );
    let printer = options.stats.then(|| stats::print(&vif, options.json)).transpose()?;
    let ended = serving.run();
    drop(printer);
    drop(listening);
    let ended = ended?;
    if !matches!(ended, Ended::Paused(_) | Ended::HandedOver(_)) {
        vif.forget_words();
    }
    outcome::say(options.json, &ended.to_string(), &json!({ "ended": ended.to_string() }));
    let handed_over = matches!(ended, Ended::HandedOver(_));
    Ok(if handed_over { Left::HandedOver } else { Left::Over })
}

/// How what is wished for is served.
fn policy(options: &Serve, wish: &Wish, hotplug: Hotplug) -> netback::device::Policy {
    let mut policy = start::policy(options, wish.mac);
    let bridge = match hotplug {
        // Nobody else puts it on one.
        Hotplug::None => wish.bridge.clone().or_else(|| options.bridge.clone()),
        Hotplug::Ours | Hotplug::Foreign => None,
    };
    // Whoever put it somewhere does so once, and not for each process of ours.
    let up = hotplug == Hotplug::None;
    policy.uplink = Uplink::Tap { name: wish.name.clone(), bridge, up, kept: true };
    policy.mtu = wish.mtu;
    if let Some(addresses) = &wish.addresses {
        policy.sources.addresses = Some(addresses.clone());
    }
    policy
}
