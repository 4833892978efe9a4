//! A host with a bridge, and guests whose interfaces a `netback` on it serves.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::network::{Namespace, v4, v6};
use crate::scene::{Process, Scene};

/// The host's bridge.
pub const BRIDGE: &str = "br0";

/// A host, and who is on its bridge. The host's own addresses end in 1, the guests' in 2, 3, ...
pub struct Lan {
    /// Where its programs live.
    pub scene: Scene,
    /// What they are domains of.
    pub hypervisor: Process,
    /// The host's network.
    pub host: Namespace,
    /// Its guests.
    pub guests: Vec<Guest>,
}

/// A guest, and who serves it.
pub struct Guest {
    /// What it is called as a domain.
    pub name: String,
    /// What its addresses end in.
    pub number: u8,
    /// Its backend.
    pub netback: Process,
    /// Its frontend, whose interface is `eth0` in its namespace.
    pub netfront: Process,
    /// Its network.
    pub namespace: Namespace,
}

impl Lan {
    /// A host without guests.
    ///
    /// # Errors
    ///
    /// It cannot be had.
    pub fn new(name: &str) -> Result<Self> {
        let scene = Scene::new(name)?;
        let hypervisor = scene.hypervisor()?;
        let host = Namespace::new()?;
        host.bridge(BRIDGE)?;
        host.address(BRIDGE, 1)?;
        Ok(Self { scene, hypervisor, host, guests: Vec::new() })
    }

    /// One more guest, with further options for its netback and its netfront.
    ///
    /// # Errors
    ///
    /// It cannot be had.
    pub fn guest(&mut self, back: &[&str], front: &[&str]) -> Result<&mut Guest> {
        let number = u8::try_from(self.guests.len())?.saturating_add(2);
        let name = format!("guest{number}");
        let netback = self.netback(&[&["--bridge", BRIDGE, "--domain", &name], back].concat())?;
        let namespace = Namespace::new()?;
        let netfront = self.netfront(&name, number, &namespace, front)?;
        self.guests.push(Guest { name, number, netback, netfront, namespace });
        self.guests.last_mut().context("a guest")
    }

    /// A netback on the host.
    ///
    /// # Errors
    ///
    /// It does not become ready.
    pub fn netback(&self, arguments: &[&str]) -> Result<Process> {
        let mut netback = self.host.start(&self.scene, "netback", arguments)?;
        netback.line_with("ready")?;
        Ok(netback)
    }

    /// A guest of that name, whose `eth0` is in `namespace` and has its addresses.
    ///
    /// # Errors
    ///
    /// It does not get its interface.
    pub fn netfront(
        &self,
        name: &str,
        number: u8,
        namespace: &Namespace,
        more: &[&str],
    ) -> Result<Process> {
        let options = ["--domain-name", name, "--timeout", "110", "tap", "--netns"];
        let arguments = [&options[..], &[namespace.name()], more].concat();
        let mut netfront = self.scene.start("netfront", "netfront", arguments)?;
        netfront.line_with("is eth0")?;
        namespace.until_up("eth0")?;
        namespace.address("eth0", number)?;
        Ok(netfront)
    }

    /// What `netback ctl` answers, as JSON.
    ///
    /// # Errors
    ///
    /// It fails; the error holds what it wrote.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["ctl", "--json"], arguments].concat();
        let said = self.scene.succeed("netback", "netback", arguments)?;
        serde_json::from_str(&said).with_context(|| said)
    }

    /// What was counted for the guest that is connected, by the one daemon or that of `guest`.
    ///
    /// # Errors
    ///
    /// It does not say.
    pub fn counted(&self, guest: &str, counter: &str) -> Result<u64> {
        let counters = self.ctl(&["counters", "--domain", guest])?;
        let pointer = format!("/ever/{counter}");
        let number = counters.pointer(&pointer).unwrap_or(&Value::Null);
        // Losses that there were none of are not named.
        Ok(number.as_u64().unwrap_or(0))
    }

    /// Ends everything in order.
    ///
    /// # Errors
    ///
    /// Something does not end as it should.
    pub fn end(self) -> Result<()> {
        for guest in self.guests {
            guest.netfront.end()?;
            guest.netback.end()?;
        }
        self.hypervisor.end().map(drop)
    }
}

impl Guest {
    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> String {
        v4(self.number)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> String {
        v6(self.number)
    }
}
