//! The device's life in the store: found, negotiated, connected, interrupted, closed.
//!
//! A state machine without clocks or threads. Its owner calls [`poll`](Device::poll) when the store
//! says that something changed, does what the returned [`Step`] says, and polls again until there
//! is nothing to do. It reads what is there each time and concludes nothing from how it got
//! there, since watches coalesce.
//!
//! ```text
//!            backend's state  ours
//! Waiting    none, 1          1     wait for a backend to offer something
//! Published  2, 3             3     rings and event channels are in the store
//! Connected  4                4     queues have links
//! Lost       none, 1          -     the backend went without a word: queues wait for the next
//! Closed     5, 6             5, 6  it said goodbye, or we did
//! ```
//!
//! The directory that names the backend belongs to the toolstack, which may replace it at any time:
//! a backend that was restarted is another domain's, and the device begins anew with whatever that
//! one offers. Only the queues and what they hold go on.
//!
//! Source: `io/blkif.h`, `io/xenbus.h`, RELEASE-4.17.

mod steps;

use alloc::string::String;
use alloc::vec::Vec;

use hypervisor::PeerFault;
use hypervisor::event::Events;
use hypervisor::memory::Granting;
use hypervisor::store::{Transactions, Watches};
use hypervisor::xenbus::{Seat, State};

use crate::link::Link;
use crate::negotiate::{DiskInfo, Offer};
use crate::quarantine::Quarantine;

/// All that a device needs of its domain.
pub trait Platform: Granting + Events + Transactions + Watches {}

impl<T: Granting + Events + Transactions + Watches> Platform for T {}

/// What we want of a device. The backend's limits lower it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Queues.
    pub queues: u32,
    /// The ring of each, as an order of pages: 0 for 32 requests, 4 for 512.
    pub ring_order: u32,
    /// Requests that each queue holds, on the ring and waiting for it.
    pub depth: u32,
    /// Pages of each queue through which private memory is bounced.
    pub pool_pages: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { queues: 1, ring_order: 2, depth: 256, pool_pages: 1024 }
    }
}

/// Why a device is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The backend took the disk away.
    Detached,
    /// The backend broke the protocol.
    Fault(PeerFault),
    /// We closed it.
    Closed,
    /// The backend that came back cannot carry on what the former one did, for this reason.
    Changed(String),
    /// Our own domain cannot go on, for this reason.
    Broken(String),
}

impl Ending {
    /// With what the requests end that this finds.
    #[must_use]
    pub fn error(&self) -> crate::request::IoError {
        match self {
            Self::Fault(_) => crate::request::IoError::Untrusted,
            _ => crate::request::IoError::Detached,
        }
    }
}

impl core::fmt::Display for Ending {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Detached => f.write_str("the disk was detached"),
            Self::Fault(fault) => write!(f, "the backend broke the protocol: {fault}"),
            Self::Closed => f.write_str("the disk was closed"),
            Self::Changed(how) => write!(f, "the backend that came back cannot go on: {how}"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

/// What a device's owner has to do now.
#[must_use = "a step that is not done leaves queues without links, or with dead ones"]
#[non_exhaustive]
pub enum Step<H: Granting + Events> {
    /// Nothing; the next change in the store may bring something.
    Idle,
    /// Attach each queue to its link, in this order.
    Attach(Vec<Link<H>>, DiskInfo),
    /// Detach every queue, and give the links to [`Device::retire`]. The device may come back.
    Detach,
    /// Tell every queue that the disk changed.
    Update(DiskInfo),
    /// End every queue, and give the links to [`Device::retire`]. The device is over.
    End(Ending),
}

/// Where a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// There is no backend yet, or it offers nothing yet.
    Waiting,
    /// The backend was offered our rings.
    Published,
    /// In use.
    Connected,
    /// The backend went without a word.
    Lost,
    /// We asked the backend to let go.
    Closing,
    /// Over.
    Closed,
}

/// One disk's directory in the store, and what stands behind it.
pub struct Device<H: Granting + Events> {
    config: Config,
    /// Our directory.
    own: String,
    /// Who is opposite, once we know.
    seat: Option<Seat>,
    phase: Phase,
    offer: Option<Offer>,
    info: Option<DiskInfo>,
    /// How many queues there are, fixed by the first connection.
    queues: Option<usize>,
    /// Links that are published and not handed out.
    links: Vec<Link<H>>,
    /// Whether the queues have links.
    attached: bool,
    /// Whether the backend began to take the disk away.
    leaving: bool,
    /// Whether the backend closed instead of taking the rings that it was offered last.
    turned_down: bool,
    /// Whether the toolstack lets the backend be trusted.
    trusted: bool,
    /// The backend's state when it was read last.
    seen: State,
    watching: bool,
    quarantine: Quarantine<H>,
    ending: Option<Ending>,
}

impl<H: Platform> Device<H> {
    /// The device in `directory`, `device/vbd/51712` for instance.
    #[must_use]
    pub fn new(directory: impl Into<String>, config: Config) -> Self {
        Self {
            config,
            own: directory.into(),
            seat: None,
            phase: Phase::Waiting,
            offer: None,
            info: None,
            queues: None,
            links: Vec::new(),
            attached: false,
            leaving: false,
            turned_down: false,
            trusted: false,
            seen: State::Unknown,
            watching: false,
            quarantine: Quarantine::default(),
            ending: None,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.own
    }

    /// The backend's place, once there is a backend.
    #[must_use]
    pub fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// What the backend offered last.
    #[must_use]
    pub fn offer(&self) -> Option<&Offer> {
        self.offer.as_ref()
    }

    /// Whether whoever gave us this disk lets us trust its backend; not before there is a backend.
    #[must_use]
    pub fn trusted(&self) -> bool {
        self.trusted
    }

    /// What the disk is, once it was connected.
    #[must_use]
    pub fn info(&self) -> Option<&DiskInfo> {
        self.info.as_ref()
    }

    /// Why it is over, if it is.
    #[must_use]
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Takes back what links held.
    pub fn retire(&mut self, platform: &H, links: impl IntoIterator<Item = Link<H>>) {
        for link in links {
            link.retire(platform, &mut self.quarantine);
        }
    }

    /// Asks again for pages that a backend would not let go of; says how many are still missing.
    pub fn reclaim(&mut self, platform: &H) -> usize {
        self.quarantine.retry(platform)
    }
}
