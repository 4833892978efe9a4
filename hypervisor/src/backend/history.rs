//! What has happened to a device, whoever its guests were, and how much of that is said.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::Error;

use super::ration::Ration;

/// The most different faults that are counted by name.
const FAULT_NAMES: usize = 64;

/// Faults and connections of a device, whoever its guests were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How often a frontend has connected.
    pub connections: u64,
    /// What ended the last connection that was ended for a reason.
    pub fault: Option<String>,
    /// How often frontends broke the protocol, by what they did.
    pub faults: BTreeMap<String, u64>,
    /// Lines that were not written to the log, because a guest caused too many.
    pub unsaid: u64,
    /// How often a frontend that came again too often was made to wait.
    pub delays: u64,
}

impl History {
    /// Takes in why a connection ended.
    pub(crate) fn ended(&mut self, error: &Error) {
        if let Error::Peer(fault) = error {
            self.count(&fault.what);
        }
        self.fault = Some(error.to_string());
    }

    fn count(&mut self, what: &str) {
        let faults = &mut self.faults;
        if faults.len() < FAULT_NAMES || faults.contains_key(what) {
            let times = faults.entry(what.to_owned()).or_default();
            *times = times.saturating_add(1);
        }
    }

    /// Whether something may be said now of what a guest did. What may not is counted, and that is said
    /// with what next may.
    pub(crate) fn may_say(&mut self, words: &mut Words) -> bool {
        match words.ration.take(Instant::now()) {
            Ok(()) => {
                let unsaid = std::mem::take(&mut words.unsaid);
                if unsaid > 0 {
                    tracing::warn!(unsaid, "the guest caused more lines than are written");
                }
                true
            }
            Err(_) => {
                words.unsaid = words.unsaid.saturating_add(1);
                self.unsaid = self.unsaid.saturating_add(1);
                false
            }
        }
    }
}

/// What may yet be said of a device.
#[derive(Debug)]
pub(crate) struct Words {
    ration: Ration,
    /// Since something was said.
    unsaid: u64,
}

impl Words {
    pub(crate) const fn new(ration: Ration) -> Self {
        Self { ration, unsaid: 0 }
    }
}
