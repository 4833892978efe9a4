//! What others are told of a device, and tell its loop.

use std::fmt;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::guest::{Guest, Wanted};
use crate::backend::history::History;
use crate::xenbus::State;

/// What others ask of the loop: by `C`, what a kind of device can have changed, answered by `A`.
#[derive(Debug)]
pub enum Message<C, A> {
    /// Change the device.
    Change {
        /// What about it.
        change: C,
        /// Where the answer goes, or why there is none.
        reply: SyncSender<Result<A, String>>,
    },
    /// Have what serves the frontend look at its limits again, and keep them for the process after this one.
    Wake {
        /// Told when it is done.
        reply: SyncSender<Result<(), String>>,
    },
    /// Answer what is under way, leave the device as it is for the process that asks, and end.
    HandOver {
        /// Told when it is done.
        reply: SyncSender<Result<(), String>>,
    },
    /// Take the device away from the guest, and end. A toolstack's device is left as it is, and who
    /// asked with a `reply` is told to ask the toolstack.
    Leave {
        /// At once, whatever the guest is doing with it.
        force: bool,
        /// Told when it is done, where somebody waits for that.
        reply: Option<SyncSender<Result<(), String>>>,
    },
}

/// What can be said of the device at any time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The guest that is served.
    pub guest: Option<Guest>,
    /// Our end's state.
    pub own: State,
    /// The frontend's.
    pub peer: State,
    /// What has happened so far.
    pub history: History,
}

/// A [`Status`] that others look at.
#[derive(Clone, Debug)]
pub struct Board(Arc<Mutex<Status>>);

impl Board {
    pub(crate) fn new() -> Self {
        let (own, peer) = (State::Unknown, State::Unknown);
        let history = History::default();
        Self(Arc::new(Mutex::new(Status { guest: None, own, peer, history })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How things are.
    #[must_use]
    pub fn read(&self) -> Status {
        self.lock().clone()
    }
}

/// Why the loop ended, where nothing went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// Somebody else, a toolstack, took the device away.
    Detached(Guest),
    /// The one domain that was to be served is gone.
    Gone(Wanted),
    /// It was asked to, and left the device in order for the next backend to go on with.
    Paused(Guest),
    /// The same, for one that asked for it.
    HandedOver(Guest),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("detached"),
            Self::Detached(guest) => write!(f, "the device was taken away from {guest}"),
            Self::Gone(wanted) => write!(f, "domain {wanted} is gone"),
            Self::HandedOver(guest) => write!(f, "handed over: another goes on for {guest}"),
            Self::Paused(guest) => {
                write!(f, "left as it is: {guest} waits for the next backend to go on")
            }
        }
    }
}
