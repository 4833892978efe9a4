//! `netback --vhost-user`: serves a virtual machine that another process runs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use hypervisor::DomId;
use hypervisor::daemon::machine::Shell;
use hypervisor::daemon::{outcome, signals};
use hypervisor::vhost_user::{Entrance, Serving};
use netback::device::mac::Shown;
use netback::device::{DeviceDesk, Link, MachineVif, Policy, Uplink, Vif};
use netback::port::interface::Name;
use serde_json::json;

use crate::options::{AllowedMac, Serve};
use crate::{start, stats};

/// Serves the machine whose monitor comes, or listens, at the socket that was named.
pub(crate) fn run(options: &Serve) -> Result<()> {
    // Before any thread is there, so that all of them leave signals to one.
    let signals = signals::hold()?;
    let entrance =
        options.vhost_user.as_ref().context("--vhost-user says where the monitor comes in")?;
    // Before anything else is open: numbers of what was inherited could be something of our own afterwards.
    let door = entrance.open(options.reconnect)?;
    start::demand_uplink(options)?;
    let vif = Arc::new(Vif::new(policy(options)));
    // It is there from now on, as a machine's cable is: what it is called, people may want to know.
    vif.open(DomId::ZERO, options.devid)?;
    let serving = Serving::new(door)?;
    let pairs = start::offer(options, &vif.policy().uplink).queues;
    let device = MachineVif::new(Arc::clone(&vif), pairs, serving.waker());
    let desk = DeviceDesk {
        vif: Arc::clone(&vif),
        board: serving.board(),
        slot: serving.slot(),
        number: options.devid,
        mac: vif.policy().mac,
        wanted: entrance.to_string(),
        me: DomId::ZERO,
    };
    let at = entrance.to_string();
    let served = Path::new(&at).file_stem().unwrap_or_default().to_string_lossy();
    let shell = Shell {
        name: start::NAME,
        served: &served,
        control: options.control.as_deref(),
        json: options.json,
        signals,
    };
    let changed = Arc::clone(&vif);
    shell.run(
        serving,
        &device,
        desk,
        |control| {
            ready(options, &vif, entrance, control);
            options.stats.then(|| stats::print(&vif, options.json)).transpose()
        },
        |link: Link| Ok(changed.set_link(link)),
    )?;
    Ok(())
}

/// How the machine is served.
fn policy(options: &Serve) -> Policy {
    let mac = options.mac.map(|mac| mac.0);
    let mut policy = start::policy(options, mac.unwrap_or_default());
    policy.mac = mac;
    if mac.is_none() && options.allow_mac.is_none() {
        policy.sources.mac = None;
    }
    if let Uplink::Tap { name: name @ None, .. } = &mut policy.uplink {
        // There is no guest's number to call it after.
        *name = Some(Name::numbered());
    }
    policy
}

fn ready(options: &Serve, vif: &Vif, at: &Entrance, control: &Path) {
    let uplink = vif.interface().unwrap_or_default();
    let allowed = match (&options.allow_mac, &options.mac) {
        (Some(AllowedMac::Only(mac)), _) | (None, Some(mac)) => mac.to_string(),
        (Some(AllowedMac::Any), _) | (None, None) => "any".to_owned(),
    };
    let line = format!(
        "ready: {uplink} ({}; may send as {allowed}) over vhost-user at {at}; control socket {}",
        start::uplink(options),
        control.display()
    );
    let object = json!({ "ready": {
        "interface": uplink, "bridge": options.bridge.as_ref().map(ToString::to_string),
        "mac": options.mac.map(|mac: Shown| mac.to_string()), "allowed_mac": allowed,
        "mtu": options.mtu, "vhost_user": at.to_string(),
        "control": control.display().to_string(),
    }});
    outcome::ready(options.json, &line, &object);
}
