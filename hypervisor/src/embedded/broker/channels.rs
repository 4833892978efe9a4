//! Event channels: which domain has which end, and which end waits for whom.
//!
//! Source: `event_channel.h` (RELEASE-4.17). An end is *bound* while both are open. When one closes,
//! the other is *unbound*, and only the domain that had the closed end may bind it again. A channel
//! goes when both ends are closed.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::embedded::channel::{Words, bell};
use crate::{DomId, HostError};

/// The most ends that one domain can have open: each costs the broker descriptors.
const PORTS: usize = 1024;

/// One channel.
#[derive(Debug)]
pub(crate) struct Wire {
    words: Words,
    pub(crate) file: OwnedFd,
    pub(crate) bells: [OwnedFd; 2],
    /// Who has, or may have, each end.
    domains: [DomId; 2],
    /// Which ends are open.
    open: [bool; 2],
}

/// An open end.
#[derive(Clone, Copy, Debug)]
struct End {
    wire: u64,
    end: usize,
    /// The connection that opened it.
    owner: u64,
}

/// An end that was just opened.
pub(crate) struct Opened<'a> {
    pub(crate) port: u32,
    pub(crate) end: usize,
    pub(crate) wire: &'a Wire,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    wires: BTreeMap<u64, Wire>,
    ports: BTreeMap<(DomId, u32), End>,
    next: u64,
}

impl Wire {
    /// The eventfd that `end` waits on, and the one that it writes.
    pub(crate) fn bells_of(&self, end: usize) -> (&OwnedFd, &OwnedFd) {
        let [first, second] = &self.bells;
        if end == 0 { (first, second) } else { (second, first) }
    }
}

impl Channels {
    /// A new channel of `domain` whose other end only `peer` may bind.
    pub(crate) fn allocate(
        &mut self,
        domain: DomId,
        peer: DomId,
        owner: u64,
    ) -> Result<Opened<'_>, HostError> {
        let port = self.free_port(domain)?;
        let (words, file) = Words::make()?;
        let wire = Wire {
            words,
            file,
            bells: [bell()?, bell()?],
            domains: [domain, peer],
            open: [true, false],
        };
        let key = self.next;
        self.next = self.next.wrapping_add(1);
        self.ports.insert((domain, port), End { wire: key, end: 0, owner });
        let wire = self.wires.entry(key).or_insert(wire);
        Ok(Opened { port, end: 0, wire })
    }

    /// Binds for `domain` the other end of what `peer` has open as `port`.
    pub(crate) fn bind(
        &mut self,
        domain: DomId,
        peer: DomId,
        port: u32,
        owner: u64,
    ) -> Result<Opened<'_>, HostError> {
        let refused = |why: &str| {
            let doing = format!("bind event channel {port} of domain {peer}: {why}");
            HostError::new(doing, Errno::EINVAL as i32)
        };
        let theirs = self.ports.get(&(peer, port)).copied();
        let theirs = theirs.ok_or_else(|| refused("it is not open"))?;
        let own_port = self.free_port(domain)?;
        let wire = self.wires.get_mut(&theirs.wire).ok_or_else(|| refused("it is not open"))?;
        let end = theirs.end ^ 1;
        if wire.open.get(end) != Some(&false) {
            return Err(refused("it is bound already"));
        }
        if wire.domains.get(end) != Some(&domain) {
            return Err(refused("it is for another domain"));
        }
        if let Some(open) = wire.open.get_mut(end) {
            *open = true;
        }
        self.ports.insert((domain, own_port), End { wire: theirs.wire, end, owner });
        // Whatever was sent while nobody was there to see it is seen now, on both sides.
        let (own_bell, their_bell) = wire.bells_of(end);
        wire.words.start(end, own_bell);
        wire.words.wake(theirs.end, their_bell);
        Ok(Opened { port: own_port, end, wire })
    }

    /// Closes an end that connection `owner` opened.
    pub(crate) fn close(&mut self, domain: DomId, port: u32, owner: u64) -> Result<(), HostError> {
        match self.ports.get(&(domain, port)) {
            Some(end) if end.owner == owner => {
                let end = *end;
                self.ports.remove(&(domain, port));
                self.closed(end);
                Ok(())
            }
            _ => {
                let doing = format!("close event channel {port} of domain {domain}");
                Err(HostError::new(doing, Errno::EINVAL as i32))
            }
        }
    }

    /// Closes all that connection `owner` opened for `domain`.
    pub(crate) fn close_all(&mut self, domain: DomId, owner: u64) {
        let all = (domain, 0)..=(domain, u32::MAX);
        let its: Vec<_> = self.ports.range(all).filter(|(_, end)| end.owner == owner).collect();
        let its: Vec<_> = its.into_iter().map(|(port, end)| (*port, *end)).collect();
        for (port, end) in its {
            self.ports.remove(&port);
            self.closed(end);
        }
    }

    fn closed(&mut self, end: End) {
        let Some(wire) = self.wires.get_mut(&end.wire) else { return };
        if let Some(open) = wire.open.get_mut(end.end) {
            *open = false;
        }
        if wire.open == [false, false] {
            self.wires.remove(&end.wire);
        }
    }

    /// The lowest port that `domain` has not open, as on Xen.
    fn free_port(&self, domain: DomId) -> Result<u32, HostError> {
        let mut port = 1_u32;
        let mut open = 0_usize;
        for (_, used) in self.ports.range((domain, 0)..=(domain, u32::MAX)).map(|(at, _)| at) {
            open = open.saturating_add(1);
            if *used == port {
                port = port.saturating_add(1);
            }
        }
        if open >= PORTS {
            let doing = format!("open an event channel: domain {domain} has {open} open");
            return Err(HostError::new(doing, Errno::ENOSPC as i32));
        }
        Ok(port)
    }
}
