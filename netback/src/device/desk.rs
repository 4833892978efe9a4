//! Answers what the control socket is asked.
//!
//! What can be read is read here; what changes the device goes to its own thread.

use std::sync::Arc;
use std::time::Duration;
use std::{fs, process};

use hypervisor::DomId;
use hypervisor::backend::{Board, Slot};
use hypervisor::daemon::control::Desk;
use serde::Serialize;
use serde_json::Value;

use crate::credit::Rate;
use crate::ctl::{Device, Limits, Request};
use crate::device::mac::Shown;
use crate::device::uplink::Uplink;
use crate::device::{Link, Message, Vif};
use crate::filter::Mac;

/// How long the device's thread may take: longer than a guest may take to let go of its interface.
const PATIENCE: Duration = Duration::from_secs(50);

/// A device's desk.
pub struct DeviceDesk {
    /// What is served.
    pub vif: Arc<Vif>,
    /// How it is with the guest.
    pub board: Board,
    /// The device's thread.
    pub slot: Slot<Message>,
    /// The device's number.
    pub number: u32,
    /// The guest's address, where it is known.
    pub mac: Option<Mac>,
    /// What the guest is waited for by.
    pub wanted: String,
    /// Who we are.
    pub me: DomId,
}

impl Desk for DeviceDesk {
    type Request = Request;

    fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::List => value(&self.device()),
            Request::Rings => value(&self.vif.rings()),
            Request::Counters => value(&self.vif.counters()),
            Request::Limits { tx, rx } => self.limit(tx.as_deref(), rx.as_deref()),
            Request::Link { up } => {
                let change = Link { up };
                let change = |reply| Message::Change { change, reply };
                value(&self.slot.ask(PATIENCE, change)?)
            }
            Request::Handover {} => {
                self.slot.ask(PATIENCE, |reply| Message::HandOver { reply })?;
                Ok(Value::Null)
            }
            Request::Detach { force } => {
                let leave = |reply| Message::Leave { force, reply: Some(reply) };
                self.slot.ask(PATIENCE, leave)?;
                Ok(Value::Null)
            }
        }
    }
}

impl DeviceDesk {
    fn device(&self) -> Device {
        let status = self.board.read();
        let (tx, rx) = self.vif.rates();
        let (resumed, pause) = self.vif.resumed();
        let policy = self.vif.policy();
        let interface = self.vif.interface();
        // A script may have put it there, and anybody elsewhere.
        let bridge = match (&policy.uplink, &interface) {
            (Uplink::Tap { .. }, Some(name)) => bridge_of(name),
            (Uplink::Tap { bridge, .. }, None) => bridge.as_ref().map(ToString::to_string),
            (Uplink::Packet(_) | Uplink::Inner(_), _) => None,
        };
        Device {
            pid: process::id(),
            domain: self.me.get(),
            devid: self.number,
            interface,
            bridge,
            mac: self.mac.map_or_else(|| "-".to_owned(), |mac| Shown(mac).to_string()),
            mtu: policy.mtu,
            guest: status.guest.as_ref().map_or_else(|| self.wanted.clone(), |g| g.name.clone()),
            guest_id: status.guest.as_ref().map(|guest| guest.id.get()),
            state: status.own.to_string(),
            guest_state: status.peer.to_string(),
            link: self.vif.is_up(),
            stalled: self.vif.is_stalled(),
            queues: u32::try_from(self.vif.queues()).unwrap_or(u32::MAX),
            connections: status.history.connections,
            resumed,
            pause_ms: pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)),
            fault: status.history.fault,
            faults: status.history.faults,
            unsaid: status.history.unsaid,
            delays: status.history.delays,
            limits: Limits::of(tx, rx),
        }
    }

    fn limit(&self, tx: Option<&str>, rx: Option<&str>) -> Result<Value, String> {
        if tx.is_some() || rx.is_some() {
            let (old_tx, old_rx) = self.vif.rates();
            let new = |said: Option<&str>, old| match said {
                Some(text) => Rate::parse_speed(text).map_err(|error| error.to_string()),
                None => Ok(old),
            };
            self.vif.set_rates(new(tx, old_tx)?, new(rx, old_rx)?);
            // A queue that sleeps until the old rate lets it go on is to look at the new one.
            self.slot.ask(PATIENCE, |reply| Message::Wake { reply })?;
        }
        let (tx, rx) = self.vif.rates();
        value(&Limits::of(tx, rx))
    }
}

/// The bridge that an interface of this network is on.
fn bridge_of(interface: &str) -> Option<String> {
    let bridge = fs::read_link(format!("/sys/class/net/{interface}/brport/bridge")).ok()?;
    Some(bridge.file_name()?.to_string_lossy().into_owned())
}

fn value<T: Serialize>(thing: &T) -> Result<Value, String> {
    serde_json::to_value(thing).map_err(|error| error.to_string())
}
