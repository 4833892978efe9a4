//! `blkback --vhost-user`: serves a virtual machine that another process runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use blkback::connect::vhost_user::MAX_QUEUES;
use blkback::device::{DeviceDesk, Disks, MachineDisk, Resize};
use blkback::policy::acquire::Mapping;
use hypervisor::daemon::machine::Shell;
use hypervisor::daemon::{outcome, signals};
use hypervisor::vhost_user::{Entrance, Serving};
use hypervisor::{DomId, size};
use serde_json::json;

use crate::options::Serve;
use crate::start::{NAME, engine_name, name, open, policy, regret};
use crate::stats;

/// Serves the machine whose monitor comes, or listens, at `entrance`.
pub(crate) fn run(options: &Serve, entrance: &Entrance) -> Result<()> {
    // Before any thread is there, so that all of them leave signals to one.
    let signals = signals::hold()?;
    // Before anything else is open: numbers of what was inherited could be something of our own afterwards.
    let door = entrance.open(options.reconnect)?;
    let queues = options.queues.unwrap_or(MAX_QUEUES);
    let (medium, image) = open(options, queues, Duration::ZERO)?;
    // Nothing is mapped for a request: all of the machine's memory is there.
    let disks = Arc::new(Disks::new(medium, image, &policy(options, Mapping::Cheap)));
    let serving = Serving::new(door)?;
    let image = name(options, &disks);
    let serial = options.serial.clone().unwrap_or_else(|| "domkit".to_owned());
    let device = MachineDisk::new(Arc::clone(&disks), queues, &serial, serving.waker());
    let desk = DeviceDesk {
        disks: Arc::clone(&disks),
        board: serving.board(),
        slot: serving.slot(),
        image: image.clone(),
        engine: engine_name(options, &disks),
        vdev: "virtio-blk".to_owned(),
        wanted: entrance.to_string(),
        me: DomId::ZERO,
        successor: false,
    };
    let served = Path::new(&image).file_stem().unwrap_or_default().to_string_lossy();
    let shell = Shell {
        name: NAME,
        served: &served,
        control: options.control.as_deref(),
        json: options.json,
        signals,
    };
    shell.run(
        serving,
        &device,
        desk,
        |control| {
            ready(options, &disks, &image, entrance, control);
            options.stats.then(|| stats::print(&disks, options.json)).transpose()
        },
        |resize: Resize| disks.resize(resize),
    )?;
    regret(&disks, &image)
}

fn ready(options: &Serve, disks: &Disks, image: &str, at: &Entrance, control: &Path) {
    let geometry = disks.medium().geometry();
    let line = format!(
        "ready: {image} ({}{}) over vhost-user at {at}; control socket {}",
        size::show(geometry.size),
        if geometry.read_only { ", read-only" } else { "" },
        control.display()
    );
    let object = json!({ "ready": {
        "image": image, "size": geometry.size, "sector_size": geometry.sector_size,
        "read_only": geometry.read_only, "direct": geometry.direct,
        "vhost_user": at.to_string(), "control": control.display().to_string(),
    }});
    outcome::ready(options.json, &line, &object);
}
