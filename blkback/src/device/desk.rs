//! Answers what the control socket is asked.
//!
//! What can be read is read here; what changes the device goes to its own thread.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::DomId;
use hypervisor::backend::{Board, Slot};
use hypervisor::daemon::control::Desk;
use hypervisor::daemon::takeover;
use serde::Serialize;
use serde_json::Value;

use crate::control::{Device, Held, Limits, Request};
use crate::device::queues::Disks;
use crate::device::{Message, Resize};
use crate::engine::Medium;
use crate::image::Present;
use crate::journal;

/// How long the device's thread may take: longer than a guest may take to let go of its disk.
const PATIENCE: Duration = Duration::from_secs(50);

/// A device's desk.
pub struct DeviceDesk {
    /// What is served.
    pub disks: Arc<Disks>,
    /// How it is with the guest.
    pub board: Board,
    /// The device's thread.
    pub slot: Slot<Message>,
    /// The image's path, or the engine's name.
    pub image: String,
    /// What is to carry requests to it, until that is known.
    pub engine: String,
    /// The disk's name in the guest.
    pub vdev: String,
    /// What the guest is waited for by.
    pub wanted: String,
    /// Who we are.
    pub me: DomId,
    /// Whether another process is started at once where this one leaves the disk to it.
    pub successor: bool,
}

impl Desk for DeviceDesk {
    type Request = Request;

    fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::List => value(&self.device()),
            Request::Rings => value(&self.disks.rings()),
            Request::Counters => value(&self.disks.counters()),
            Request::Resize { size } => {
                let change = Resize { size };
                let change = |reply| Message::Change { change, reply };
                value(&self.slot.ask(PATIENCE, change)?)
            }
            Request::Limits { iops, bytes } => self.limit(iops, bytes),
            Request::Resume => {
                if self.disks.stalls().now().is_some() && self.reopen()? {
                    return value(&0);
                }
                let stalls = self.disks.stalls();
                let held = stalls.now().map_or(0, |(requests, _)| requests);
                stalls.resume();
                self.slot.ask(PATIENCE, |reply| Message::Wake { reply })?;
                value(&held)
            }
            Request::Handover { formats } => {
                if let Some(formats) = formats {
                    takeover::check(journal::VERSION, &formats)?;
                }
                if !matches!(self.disks.medium(), Medium::Image(..)) {
                    return Err("what it serves is in its own memory, and ends with it".to_owned());
                }
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
    /// Where the image that is open is dead, sees to it that what lies in its place is opened. Says whether that
    /// is done, by the process after this one; what is held stands in the journals.
    fn reopen(&self) -> Result<bool, String> {
        match self.disks.present() {
            Ok(Present::Served) => Ok(false),
            Ok(Present::Replaced) if self.successor => {
                tracing::info!(
                    image = self.image,
                    "the image is dead; leaving its disk to who opens it anew"
                );
                self.slot.ask(PATIENCE, |reply| Message::HandOver { reply })?;
                Ok(true)
            }
            Ok(Present::Replaced) => Err(format!(
                "{} is dead, and another one lies in its place; to serve that, start the same command again with \
                 --takeover",
                self.image
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    fn device(&self) -> Device {
        let status = self.board.read();
        let geometry = self.disks.medium().geometry();
        let (iops, bytes) = self.disks.limits().get();
        let (resumed, pause) = self.disks.resumed();
        Device {
            pid: process::id(),
            domain: self.me.get(),
            image: self.image.clone(),
            size: geometry.size,
            sector_size: geometry.sector_size,
            read_only: geometry.read_only,
            direct: geometry.direct,
            engine: self.disks.engine().unwrap_or(&self.engine).to_owned(),
            vdev: self.vdev.clone(),
            guest: status.guest.as_ref().map_or_else(|| self.wanted.clone(), |g| g.name.clone()),
            guest_id: status.guest.as_ref().map(|guest| guest.id.get()),
            state: status.own.to_string(),
            guest_state: status.peer.to_string(),
            queues: u32::try_from(self.disks.queues()).unwrap_or(u32::MAX),
            connections: status.history.connections,
            resumed,
            pause_ms: pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)),
            fault: status.history.fault,
            faults: status.history.faults,
            unsaid: status.history.unsaid,
            delays: status.history.delays,
            lost: self.disks.lost(),
            held: self.disks.stalls().now().map(Held::new),
            limits: Limits { iops, bytes },
        }
    }

    fn limit(&self, iops: Option<u64>, bytes: Option<u64>) -> Result<Value, String> {
        let limits = self.disks.limits();
        if iops.is_some() || bytes.is_some() {
            let (old_iops, old_bytes) = limits.get();
            let some = |new: Option<u64>, old: Option<u64>| new.map_or(old, nonzero);
            limits.set(some(iops, old_iops), some(bytes, old_bytes));
            // A queue that sleeps until the old limit lets it go on is to look at the new one.
            self.slot.ask(PATIENCE, |reply| Message::Wake { reply })?;
        }
        let (iops, bytes) = limits.get();
        value(&Limits { iops, bytes })
    }
}

/// A limit of 0 is none.
#[must_use]
pub fn nonzero(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit > 0)
}

/// What a medium is called where it has no path.
#[must_use]
pub fn name_of(medium: &Medium) -> &'static str {
    match medium {
        Medium::Image(..) => "image",
        Medium::Memory(_) => "memory",
        Medium::Null(_) => "null",
    }
}

fn value<T: Serialize>(thing: &T) -> Result<Value, String> {
    serde_json::to_value(thing).map_err(|error| error.to_string())
}
