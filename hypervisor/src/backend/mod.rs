//! One device for one guest, as its backend sees it: from the store's first word to its last.
//!
//! [`Serving`] is a daemon's loop: it waits for the guest, has the device made ([`toolstack`]) or
//! takes one over that a toolstack made ([`adopt`]), takes it through its life ([`settle`], by the
//! rules of [`lifecycle`]), and begins again with the next guest of that name. What kind of device
//! it is, is said by three traits: an [`Offer`] is what a frontend may choose from, a [`Service`]
//! takes up the frontend's rings, and [`Running`] is one connection. One thread does all of this, so
//! that nothing is freed under somebody's feet however fast a guest connects and disconnects
//! (advisories 350, 374); what serves the rings ends before what it uses does.
//!
//! ```text
//!   serve ── guest, toolstack, adopt    who is served, and the device's directories
//!     │
//!     ├──── settle, lifecycle           the device's states
//!     │        │
//!     │        └── Service, Running     a kind of device: rings, threads, what lies behind them
//!     │
//!     └──── mailbox <── control socket, signals
//! ```
//!
//! Before: the store. After: the kind's own handshake. Trust: the frontend's directory is
//! attacker-written; what it does wrong ends its connection, is said in `error` beside the state,
//! and is counted.

pub mod adopt;
mod clock;
pub mod guest;
pub mod history;
pub mod hotplug;
pub mod lifecycle;
pub mod mailbox;
pub mod ration;
pub mod serve;
pub mod settle;
pub mod standby;
pub mod toolstack;
pub mod watch;

#[cfg(all(test, feature = "embedded"))]
mod tests;

use std::os::fd::AsFd;

use crate::event::Events;
use crate::memory::Using;
use crate::store::{Store, Transactions, Watches};
use crate::xenbus::Seat;
use crate::{ConfigError, Error};

pub use adopt::{Adopted, Spot};
pub use clock::Clock;
pub use guest::{Guest, Wanted};
pub use history::History;
pub use hotplug::Hotplug;
pub use mailbox::{Mailbox, Slot, Waker};
pub use serve::{Board, Ended, Message, Plan, Serving, Status};
pub use settle::{Backend, Settled};
pub use toolstack::Order;

/// All that a backend needs of its domain besides the store.
pub trait Platform: Using + Events {}

impl<T: Using + Events> Platform for T {}

/// A way to the store that can be waited at.
pub trait Meeting: Transactions + Watches + AsFd {}

impl<T: Transactions + Watches + AsFd> Meeting for T {}

/// A key of our own directory and what is to stand there.
pub type Key = (&'static str, String);

/// A kind of device, by its names and by what its protocol knows of.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What it is to its frontend, whatever its backend is: `vbd`, `vif`.
    pub frontend: &'static str,
    /// What people call it: `disk`.
    pub noun: &'static str,
    /// The option that says which of a guest's devices it is: `--vdev`.
    pub option: &'static str,
    /// A device's name for its guest, by its number in the store; the error says why there is no
    /// such device.
    pub label: fn(u32) -> Result<String, ConfigError>,
    /// What has a toolstack take one away: `xl block-detach`.
    pub detach: &'static str,
    /// Whether a device of this type has, in the hotplug script of that name, one that passes on what the
    /// backend says ([`Hotplug::Ours`]).
    pub script: fn(&str, &str) -> bool,
    /// The keys of our own directory that a toolstack may change while the device is in use. Any
    /// change of theirs is met by [`Running::reread`].
    pub live: &'static [&'static str],
    /// The keys of the frontend's directory that it may change while it is connected, met in the same
    /// way.
    pub wishes: &'static [&'static str],
    /// Whether a connected frontend may go to state Reconfiguring to have its keys read again.
    /// It is answered by [`Running::reconfigure`] and state Reconfigured.
    pub reconfigures: bool,
    /// Whether a frontend has written all its keys in state Initialised, and waits there to be connected.
    /// One of another kind may pass through that state, and has written them in state Connected.
    pub connects_early: bool,
    /// Whether its rings say by themselves what was taken and not answered, because everything is
    /// answered in order. Those of a backend that was killed are taken up then; of other kinds, only
    /// those that were left in order or that the kind [recalls](Service::recalls).
    pub resumes: bool,
}

/// What a backend can do for any frontend.
pub trait Offer: Clone {
    /// What of it stands in our directory before state InitWait.
    fn keys(&self) -> Vec<Key>;

    /// What a frontend may have chosen from where a backend before us wrote an offer into our
    /// directory: that, as far as we can, and no less than our own.
    ///
    /// # Errors
    ///
    /// The store is gone.
    fn after<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<Self, Error>;
}

/// What serves a device's connections, one at a time.
pub trait Service<H: Platform> {
    /// What kind of device it is.
    const KIND: &'static Kind;

    /// What a frontend may choose from.
    type Offer: Offer;
    /// A connection that is being served.
    type Running: Running;
    /// What others may ask to have changed on the device's thread.
    type Change;
    /// What they are answered.
    type Changed;

    /// Makes what has to be there before a frontend hears of the device: that numbered `number`, for
    /// `guest`. Called for a device of our own, before its directories are made; a toolstack's is
    /// prepared by whoever adopts it.
    ///
    /// # Errors
    ///
    /// It cannot be had, and nothing is served.
    fn prepare(&self, guest: &Guest, number: u32) -> Result<(), Error> {
        let _ = (guest, number);
        Ok(())
    }

    /// The device is no more: lets go of what [`prepare`](Self::prepare) made.
    fn release(&self) {}

    /// The device stays as it is for the process after this one: what [`prepare`](Self::prepare) made is not to
    /// go with this one.
    fn stay(&self) {}

    /// What was changed while it runs and is to hold for the process after this one as well: it is kept in our own
    /// directory, and found there by [`restore`](Self::restore).
    fn changed(&self) -> Option<String> {
        None
    }

    /// What a process before this one left as [`changed`](Self::changed). What makes no sense is left aside.
    fn restore(&self, changed: &str) {
        let _ = changed;
    }

    /// Whether it is known what a backend that was killed had taken from the rings of the frontend at
    /// `seat`, who is connected, and not answered; then [`connect`](Self::connect) goes on with them. `offer`
    /// is what the frontend may have chosen from.
    ///
    /// # Errors
    ///
    /// The host cannot, or the store is gone. That nothing is known is no error.
    fn recalls<S: Store + ?Sized>(
        &self,
        domain: &H,
        seat: &Seat,
        store: &S,
        offer: &Self::Offer,
    ) -> Result<bool, Error> {
        let _ = (domain, seat, store, offer);
        Ok(false)
    }

    /// Reads what the frontend wrote for this connection, takes its rings into use and begins to
    /// serve them. `waker` is to be woken when [`Running::failed`] has something to say.
    ///
    /// # Errors
    ///
    /// The frontend's fault, or the host cannot, or the store is gone. Whatever was mapped or bound
    /// before that is let go.
    fn connect<S: Store + ?Sized>(
        &self,
        domain: &H,
        seat: &Seat,
        store: &S,
        offer: &Self::Offer,
        waker: Waker,
    ) -> Result<Self::Running, Error>;

    /// What stands in our directory before state Connected, and is written anew after each
    /// [`change`](Self::change).
    fn describe(&self, offer: &Self::Offer) -> Vec<Key>;

    /// Changes the device. A connected frontend is then told what it is like
    /// ([`describe`](Self::describe)), together with state Connected once more.
    ///
    /// # Errors
    ///
    /// It cannot be like that; whoever asked is told.
    fn change(&self, change: Self::Change) -> Result<Self::Changed, Error>;
}

/// A connection that is being served.
pub trait Running {
    /// What ended the service of it before its time, if anything did.
    fn failed(&mut self) -> Option<Error>;

    /// Looks at limits and sizes again.
    fn wake(&self);

    /// Reads what the toolstack may have changed in our own directory ([`Kind::live`]), and the
    /// frontend in its own ([`Kind::wishes`]). Called whenever anything about the device changed, so
    /// that what is as before is to be left alone.
    ///
    /// # Errors
    ///
    /// The connection cannot go on.
    fn reread<S: Store + ?Sized>(&mut self, seat: &Seat, store: &S) -> Result<(), Error>;

    /// Reads what the frontend may change in its directory while it is connected
    /// ([`Kind::reconfigures`]). May be called several times for one change.
    ///
    /// # Errors
    ///
    /// The frontend's fault, or the connection cannot go on.
    fn reconfigure<S: Store + ?Sized>(&mut self, seat: &Seat, store: &S) -> Result<(), Error>;

    /// Whether the rings and channels that the frontend says are those that are served. Where it cannot be
    /// told what it says, they are.
    ///
    /// # Errors
    ///
    /// The store is gone.
    fn is_current<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<bool, Error>;

    /// Lets the rings go for another process to go on with. Says whether everything taken from them was answered; what
    /// was not is [recalled](Service::recalls) there.
    fn leave(self) -> bool
    where
        Self: Sized,
    {
        self.finish();
        true
    }

    /// Takes on nothing more, finishes what is under way, answers it, and lets the rings go.
    fn finish(self);
}
