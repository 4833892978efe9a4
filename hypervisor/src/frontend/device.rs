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
//! Published  2, 3             3, 4  rings and event channels are in the store
//! Connected  4                4     queues have links
//! Lost       none, 1          -     the backend went without a word: queues wait for the next
//! Closed     5, 6             5, 6  it said goodbye, or we did
//! ```
//!
//! The directory that names the backend belongs to the toolstack, which may replace it at any time:
//! a backend that was restarted is another domain's, and the device begins anew with whatever that
//! one offers. Only the queues and what they hold go on.
//!
//! Source: `io/xenbus.h` and the state diagram of `io/blkif.h`, RELEASE-4.17. A network frontend
//! publishes its rings with state 4 at once, and so tells by the backend's state alone that it is
//! connected.

use alloc::string::String;

use crate::PeerFault;
use crate::frontend::{Kind, Platform, Quarantine, Retire};
use crate::xenbus::{Seat, State};

/// Why a device is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The backend took the device away.
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

impl core::fmt::Display for Ending {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Detached => f.write_str("the device was detached"),
            Self::Fault(fault) => write!(f, "the backend broke the protocol: {fault}"),
            Self::Closed => f.write_str("the device was closed"),
            Self::Changed(how) => write!(f, "the backend that came back cannot go on: {how}"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

/// What a device's owner has to do now.
#[must_use = "a step that is not done leaves queues without links, or with dead ones"]
pub enum Step<L, I> {
    /// Nothing; the next change in the store may bring something.
    Idle,
    /// Attach the queues to these links, which are those of what the device is.
    Attach(L, I),
    /// Detach every queue, and give the links to [`Device::retire`]. The device may come back.
    Detach,
    /// Tell every queue that the device is this now.
    Update(I),
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

/// What a device of kind `K` tells its owner to do.
pub type StepOf<H, K> = Step<<K as Kind<H>>::Links, <K as Kind<H>>::Info>;

/// One device's directory in the store, and what stands behind it.
pub struct Device<H: Platform, K: Kind<H>> {
    pub(super) kind: K,
    /// Our directory.
    pub(super) own: String,
    /// Who is opposite, once we know.
    pub(super) seat: Option<Seat>,
    pub(super) phase: Phase,
    pub(super) offer: Option<K::Offer>,
    pub(super) info: Option<K::Info>,
    /// Whether it was ever connected, so that somebody uses its queues.
    pub(super) used: bool,
    /// Links that are published and not handed out.
    pub(super) links: Option<K::Links>,
    /// Whether the queues have links.
    pub(super) attached: bool,
    /// Whether the backend began to take the device away.
    pub(super) leaving: bool,
    /// Whether the backend closed instead of taking the rings that it was offered last.
    pub(super) turned_down: bool,
    /// Whether we closed for the backend to see that the rings that it had are no more.
    pub(super) parted: bool,
    /// Whether the toolstack lets the backend be trusted.
    pub(super) trusted: bool,
    /// The backend's state when it was read last.
    pub(super) seen: State,
    pub(super) watching: bool,
    pub(super) quarantine: Quarantine<H>,
    pub(super) ending: Option<Ending>,
}

impl<H: Platform, K: Kind<H>> Device<H, K> {
    /// The device in `directory`, `device/vbd/51712` for instance.
    #[must_use]
    pub fn new(directory: impl Into<String>, kind: K) -> Self {
        Self {
            kind,
            own: directory.into(),
            seat: None,
            phase: Phase::Waiting,
            offer: None,
            info: None,
            used: false,
            links: None,
            attached: false,
            leaving: false,
            turned_down: false,
            parted: false,
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
    pub fn offer(&self) -> Option<&K::Offer> {
        self.offer.as_ref()
    }

    /// Whether whoever gave us this device lets us trust its backend; not before there is a backend.
    #[must_use]
    pub fn trusted(&self) -> bool {
        self.trusted
    }

    /// What the device is, once it was connected.
    #[must_use]
    pub fn info(&self) -> Option<&K::Info> {
        self.info.as_ref()
    }

    /// Why it is over, if it is.
    #[must_use]
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Takes back what links held.
    pub fn retire(&mut self, platform: &H, links: impl Retire<H>) {
        links.retire(platform, &mut self.quarantine);
    }

    /// Asks again for pages that a backend would not let go of; says how many are still missing.
    pub fn reclaim(&mut self, platform: &H) -> usize {
        self.quarantine.retry(platform)
    }
}
