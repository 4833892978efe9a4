//! `blkback ctl`: finds the daemon, asks it, and shows what it says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use blkback::control::{Counters, Device, Held, Limits, Request, Ring};
use blkback::stats::Snapshot;
use hypervisor::daemon::control::{Client, socket};
use hypervisor::daemon::{table, watcher};
use hypervisor::embedded::Place;
use hypervisor::size;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::options::{Ctl, What};
use crate::start::NAME;

pub(crate) fn run(ctl: &Ctl) -> Result<()> {
    if matches!(ctl.what, What::List) {
        return list(ctl);
    }
    let path = the_one(ctl)?;
    let request = match ctl.what {
        What::List => Request::List,
        What::Rings => Request::Rings,
        What::Counters => Request::Counters,
        What::Resize { size } => Request::Resize { size },
        What::Limits { iops, bytes } => Request::Limits { iops, bytes },
        What::Resume => Request::Resume,
        What::Handover => Request::Handover { formats: None },
        What::Detach { force } => Request::Detach { force },
    };
    let answer = ask(&path, &request)?;
    if ctl.json {
        println!("{answer}");
        return Ok(());
    }
    match ctl.what {
        What::List => {}
        What::Rings => rings(&read::<Vec<Ring>>(answer)?),
        What::Counters => counters(&read(answer)?)?,
        What::Resize { .. } => println!("size: {}", size::show(read(answer)?)),
        What::Limits { .. } => {
            let limits: Limits = read(answer)?;
            println!("requests a second: {}", number_or_none(limits.iops));
            println!("bytes a second:    {}", limits.bytes.map_or("none".into(), size::show));
        }
        What::Resume => println!("tried again: {}", read::<u64>(answer)?),
        What::Handover => println!("left as it is"),
        What::Detach { .. } => println!("detached"),
    }
    Ok(())
}

fn ask(path: &std::path::Path, request: &Request) -> Result<Value> {
    match Client::connect(NAME, path)?.ask(request)? {
        Ok(answer) => Ok(answer),
        Err(words) => bail!("{words}"),
    }
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer).context("the daemon is of another version than this program")
}

/// Every daemon that answers, with what it serves.
fn found(ctl: &Ctl) -> Result<Vec<(PathBuf, Device)>> {
    if let Some(path) = &ctl.control {
        return Ok(vec![(path.clone(), read(ask(path, &Request::List)?)?)]);
    }
    let mut found = all()?;
    if let Some(image) = &ctl.image {
        let full = std::fs::canonicalize(image).unwrap_or_else(|_| image.clone());
        found.retain(|(_, device)| full == *device.image || *image == *device.image);
    }
    Ok(found)
}

/// Every daemon in the usual place that answers.
pub(crate) fn all() -> Result<Vec<(PathBuf, Device)>> {
    let paths = socket::find(NAME, Place::standard().folder())?;
    Ok(paths.iter().filter_map(|path| answering(path)).collect())
}

/// The daemon at `path`, if it answers: one that was killed has left its socket and does not, and one that is just
/// ending says nothing that can be read.
pub(crate) fn answering(path: &Path) -> Option<(PathBuf, Device)> {
    let answer = Client::connect(NAME, path).ok()?.ask(&Request::List).ok()?.ok()?;
    Some((path.to_owned(), read(answer).ok()?))
}

fn the_one(ctl: &Ctl) -> Result<PathBuf> {
    if let Some(path) = &ctl.control {
        return Ok(path.clone());
    }
    let mut found = found(ctl)?;
    match (found.pop(), found.is_empty()) {
        (Some((path, _)), true) => Ok(path),
        (None, _) => match &ctl.image {
            Some(image) => bail!("image '{}': no blkback serves it here", image.display()),
            None => bail!(
                "no blkback runs here (looked in {}); name its socket with --control",
                Place::standard().folder().display()
            ),
        },
        (Some(last), false) => {
            found.push(last);
            let images: Vec<_> = found.iter().map(|(_, device)| device.image.as_str()).collect();
            bail!("several blkbacks run here; choose by --image: {}", images.join(", "))
        }
    }
}

fn list(ctl: &Ctl) -> Result<()> {
    let found = found(ctl)?;
    if ctl.json {
        let mut devices = Vec::new();
        for (_, device) in &found {
            devices.push(serde_json::to_value(device)?);
        }
        if ctl.control.is_none() {
            let given_up = watcher::find(NAME, Place::standard().folder())?.into_iter();
            for device in given_up.flat_map(|(_, watching)| watching.given_up) {
                devices.push(json!({ "device": device.device, "given_up": device.why }));
            }
        }
        println!("{}", serde_json::to_string(&devices)?);
        return Ok(());
    }
    let mut rows = vec![
        ["IMAGE", "SIZE", "MODE", "ENGINE", "GUEST", "DISK", "STATE", "QUEUES", "PID"]
            .map(String::from)
            .to_vec(),
    ];
    for (_, d) in &found {
        let guest = match d.guest_id {
            Some(id) => format!("{} ({id})", d.guest),
            // A virtual machine has no number.
            None if d.state == "connected" => d.guest.clone(),
            None => format!("{} (awaited)", d.guest),
        };
        rows.push(vec![
            d.image.clone(),
            size::show(d.size),
            if d.read_only { "r" } else { "w" }.into(),
            d.engine.clone(),
            guest,
            d.vdev.clone(),
            d.state.clone(),
            d.queues.to_string(),
            d.pid.to_string(),
        ]);
    }
    table::print(&rows);
    for (_, d) in &found {
        if let Some(fault) = &d.fault {
            println!("{}: {fault}", d.image);
        }
        if let Some(held) = &d.held {
            let Held { requests, why, .. } = held;
            println!("{}: {requests} requests held: {why}", d.image);
        }
    }
    if ctl.control.is_none() {
        for (_, watching) in watcher::find(NAME, Place::standard().folder())? {
            for device in watching.given_up {
                println!("{}: given up: {}", device.device, device.why);
            }
        }
    }
    Ok(())
}

fn rings(rings: &[Ring]) {
    let head = ["QUEUE", "SLOTS", "TAKEN", "ANSWERED", "UNDER WAY"].map(String::from).to_vec();
    let rows = rings.iter().map(|r| {
        [r.queue, r.slots, r.taken, r.answered, r.under_way].map(|n| n.to_string()).to_vec()
    });
    table::print(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
}

/// One row a counter, one column a queue, their sum, and the sum with all earlier connections.
fn counters(counters: &Counters) -> Result<()> {
    let (all, ever) = (flat(&counters.total)?, flat(&counters.ever)?);
    let queues: Vec<_> = counters.queues.iter().map(flat).collect::<Result<_>>()?;
    let mut head = vec!["COUNTER".to_owned()];
    head.extend((0..queues.len()).map(|queue| format!("QUEUE {queue}")));
    head.extend(["ALL", "EVER"].map(String::from));
    let mut rows = vec![head];
    for (name, ever) in &ever {
        let mut row = vec![name.clone()];
        row.extend(queues.iter().map(|queue| queue.get(name).unwrap_or(&0).to_string()));
        row.extend([all.get(name).unwrap_or(&0), ever].map(u64::to_string));
        rows.push(row);
    }
    table::print(&rows);
    for percent in [50, 90, 99] {
        if let Some(ns) = counters.total.latency_ns(&Snapshot::default(), percent) {
            println!("latency of {percent}%: under {:.1} us", ns as f64 / 1000.0);
        }
    }
    Ok(())
}

/// A snapshot's numbers by name; those in maps by both names.
fn flat(snapshot: &Snapshot) -> Result<BTreeMap<String, u64>> {
    let mut numbers = BTreeMap::new();
    let Value::Object(all) = serde_json::to_value(snapshot)? else { return Ok(numbers) };
    for (name, value) in all {
        match value {
            Value::Number(number) => {
                numbers.insert(name, number.as_u64().unwrap_or_default());
            }
            Value::Object(inner) => numbers.extend(inner.iter().map(|(reason, number)| {
                (format!("{name}: {reason}"), number.as_u64().unwrap_or_default())
            })),
            _ => {}
        }
    }
    Ok(numbers)
}

fn number_or_none(number: Option<u64>) -> String {
    number.map_or("none".into(), |number| number.to_string())
}
