//! `netback ctl`: finds the daemon, asks it, and shows what it says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hypervisor::daemon::control::{Client, socket};
use hypervisor::daemon::{table, watcher};
use hypervisor::embedded::Place;
use netback::ctl::{Counters, Device, Limits, Request, Ring};
use netback::stats::Snapshot;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::options::{Ctl, UpDown, What};
use crate::start::NAME;

pub(crate) fn run(ctl: &Ctl) -> Result<()> {
    let request = match &ctl.what {
        What::List => return list(ctl),
        What::Rings => Request::Rings,
        What::Counters => Request::Counters,
        What::Limits { tx, rx } => Request::Limits { tx: tx.clone(), rx: rx.clone() },
        What::Link { state } => Request::Link { up: state.map(|state| state == UpDown::Up) },
        What::Handover => Request::Handover {},
        What::Detach { force } => Request::Detach { force: *force },
    };
    let answer = ask(&the_one(ctl)?, &request)?;
    if ctl.json {
        println!("{answer}");
        return Ok(());
    }
    match &ctl.what {
        What::List => {}
        What::Rings => rings(&read::<Vec<Ring>>(answer)?),
        What::Counters => counters(&read(answer)?)?,
        What::Limits { .. } => {
            let limits: Limits = read(answer)?;
            println!("the guest sends:    {}", speed(limits.tx));
            println!("the guest receives: {}", speed(limits.rx));
        }
        What::Link { .. } => println!("link: {}", if read(answer)? { "up" } else { "down" }),
        What::Handover => println!("left as it is"),
        What::Detach { .. } => println!("detached"),
    }
    Ok(())
}

fn ask(path: &Path, request: &Request) -> Result<Value> {
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
    if let Some(guest) = &ctl.guest {
        let number = guest.parse::<u16>().ok();
        found.retain(|(_, d)| d.guest == *guest || (number.is_some() && d.guest_id == number));
    }
    if let Some(devid) = ctl.number {
        found.retain(|(_, device)| device.devid == devid);
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
        (None, _) if ctl.guest.is_some() || ctl.number.is_some() => {
            bail!("no netback here serves that; netback ctl list shows what is served")
        }
        (None, _) => bail!(
            "no netback runs here (looked in {}); name its socket with --control",
            Place::standard().folder().display()
        ),
        (Some(last), false) => {
            found.push(last);
            let all =
                found.iter().map(|(_, d)| format!("--domain {} --devid {}", d.guest, d.devid));
            bail!("several netbacks run here; choose one: {}", all.collect::<Vec<_>>().join(", "))
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
        devices.extend(
            given_up(ctl)?
                .into_iter()
                .map(|(device, why)| json!({ "device": device, "given_up": why })),
        );
        println!("{}", serde_json::to_string(&devices)?);
        return Ok(());
    }
    let head = ["INTERFACE", "BRIDGE", "MAC", "GUEST", "DEVID", "STATE", "LINK", "QUEUES", "PID"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let or_dash = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".into());
    for (_, d) in &found {
        let guest = match d.guest_id {
            Some(id) => format!("{} ({id})", d.guest),
            None => format!("{} (awaited)", d.guest),
        };
        let link = match (d.link, d.stalled) {
            (false, _) => "down",
            (true, true) => "stalled",
            (true, false) => "up",
        };
        rows.push(vec![
            or_dash(&d.interface),
            or_dash(&d.bridge),
            d.mac.clone(),
            guest,
            d.devid.to_string(),
            d.state.clone(),
            link.into(),
            d.queues.to_string(),
            d.pid.to_string(),
        ]);
    }
    table::print(&rows);
    for (_, d) in &found {
        if let Some(fault) = &d.fault {
            println!("{} {}: {fault}", d.guest, d.devid);
        }
    }
    for (device, why) in given_up(ctl)? {
        println!("{device}: given up: {why}");
    }
    Ok(())
}

/// Devices that a watcher has given up, and why.
fn given_up(ctl: &Ctl) -> Result<Vec<(String, String)>> {
    if ctl.control.is_some() {
        return Ok(Vec::new());
    }
    let found = watcher::find(NAME, Place::standard().folder())?.into_iter();
    let all = found.flat_map(|(_, watching)| watching.given_up);
    Ok(all.map(|device| (device.device, device.why)).collect())
}

fn rings(rings: &[Ring]) {
    let head = ["QUEUE", "RING", "SLOTS", "TAKEN", "ANSWERED", "UNDER WAY"];
    let rows = rings.iter().map(|r| {
        let numbers = [u64::from(r.slots), r.taken, r.answered, r.under_way];
        let numbers = numbers.map(|n| n.to_string());
        [r.queue.to_string(), r.ring.clone()].into_iter().chain(numbers).collect()
    });
    let head = head.map(String::from).to_vec();
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

fn speed(bytes: Option<u64>) -> String {
    match bytes {
        None => "no limit".to_owned(),
        Some(bytes) => format!("{:.3} Mb/s", bytes as f64 * 8.0 / 1e6),
    }
}
