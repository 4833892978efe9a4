//! What a kind of device brings: what it negotiates, and what a connection is made of.

use alloc::string::String;
use alloc::vec::Vec;

use crate::Error;
use crate::event::Events;
use crate::frontend::Quarantine;
use crate::memory::Granting;
use crate::store::{Transactions, Watches};
use crate::xenbus::{Seat, State};

/// All that a device needs of its domain.
pub trait Platform: Granting + Events + Transactions + Watches {}

impl<T: Granting + Events + Transactions + Watches> Platform for T {}

/// What holds granted pages and event channels that are to be taken back.
pub trait Retire<H: Granting> {
    /// Closes the event channels and takes every page back, or keeps aside those that the backend
    /// holds on to.
    fn retire(self, platform: &H, quarantine: &mut Quarantine<H>);
}

impl<H: Granting, T: Retire<H>> Retire<H> for Vec<T> {
    fn retire(self, platform: &H, quarantine: &mut Quarantine<H>) {
        for each in self {
            each.retire(platform, quarantine);
        }
    }
}

/// A kind of device, and what its driver wants of one.
pub trait Kind<H: Platform> {
    /// All rings, event channels and pages of one connection.
    type Links: Retire<H>;
    /// What a backend offers before there is a connection.
    type Offer: Clone;
    /// What a connected device is.
    type Info: Clone + PartialEq;

    /// What watches are registered with.
    const TOKEN: &'static str;
    /// The state that is published together with the rings, which the backend waits for.
    const PUBLISHED: State;

    /// Reads what the backend at `seat` offers.
    ///
    /// # Errors
    ///
    /// A value is out of range, or the store is gone.
    fn offer(&self, platform: &H, seat: &Seat) -> Result<Self::Offer, Error>;

    /// Reads what the connected backend at `seat` serves, and what of its offer it says only now.
    ///
    /// # Errors
    ///
    /// A value is missing or out of range, or the store is gone.
    fn info(
        &self,
        platform: &H,
        seat: &Seat,
        offer: Option<&mut Self::Offer>,
    ) -> Result<Self::Info, Error>;

    /// Makes rings for the backend at `seat`, which offers `offer`. Where the device was connected
    /// before (`again`), the queues of that connection are in use.
    ///
    /// # Errors
    ///
    /// There is no memory for rings. Within that: how the backend's offer is less than what is in use.
    fn make(
        &mut self,
        platform: &H,
        seat: &Seat,
        offer: &Self::Offer,
        again: bool,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Result<Self::Links, String>, Error>;

    /// The keys that publish `links`.
    fn publication(&self, links: &Self::Links) -> Vec<(String, String)>;

    /// Whether `key` in our own directory is one that a publication may have written.
    fn publishes(key: &str) -> bool;

    /// How a device differs from what it was such that its users cannot go on.
    fn unlike(was: &Self::Info, is: &Self::Info) -> Option<String>;
}
