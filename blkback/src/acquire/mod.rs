//! Makes the guest's bytes reachable: mapped for good, mapped for the request, or copied.
//!
//! Before: `throttle`. After: `submit`. Counterpart: `release`. The path sees [`GuestMemory`] only;
//! [`Grants`] is what stands behind it where guests grant pages, [`Mapped`] where all of a machine's memory is
//! there to be reached.
//!
//! Trust: references are the peer's and any of them may be refused; the request is then answered
//! with an error and nothing of it stays mapped. Sources: io/blkif.h notes 7 and 8, grant_table.h
//! (RELEASE-4.17). Units: bytes.

pub mod bounce;
pub mod cache;
pub mod grants;
pub mod hold;
pub mod ram;

use hypervisor::memory::Memory;

pub use grants::{Grants, InPage};
pub use hold::{Hold, InFlight, Reached};
pub use ram::{GuestAddress, Mapped};

use crate::segments::{Body, Segment};
use crate::validate::Refusal;

/// Which way a request's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the medium to the guest.
    ToGuest,
    /// From the guest to the medium.
    FromGuest,
}

/// Why a request's bytes are not reachable.
#[derive(Debug)]
pub enum Unreached {
    /// There is no room for them before other requests are done.
    Later,
    /// They cannot be had.
    Failed(Refusal),
}

impl<R: Into<Refusal>> From<R> for Unreached {
    fn from(failed: R) -> Self {
        Self::Failed(failed.into())
    }
}

/// How a queue gets at its guest's bytes.
pub trait GuestMemory {
    /// What keeps bytes reachable.
    type Hold: Memory;
    /// How the guest names where its bytes lie.
    type Place;

    /// Copies bytes that describe a request out of the guest, once.
    ///
    /// # Errors
    ///
    /// They cannot be had.
    fn fetch(&mut self, from: Self::Place, into: &mut [u8]) -> Result<(), Refusal>;

    /// Makes `segments` reachable, in their order.
    ///
    /// # Errors
    ///
    /// See [`Unreached`]. What was added to `into` before stays there, to be released.
    fn reach(
        &mut self,
        segments: &[Segment<Self::Place>],
        way: Way,
        into: &mut Reached<Self::Hold>,
    ) -> Result<(), Unreached>;

    /// Copies what goes from the guest to the medium, where it is to be copied. A request for which
    /// that fails has its [`Body::failed`] set.
    fn copy_in<'a>(&mut self, batch: impl Iterator<Item = &'a mut Body<Self::Hold, Self::Place>>)
    where
        Self: 'a;

    /// Copies what came from the medium to the guest, likewise.
    fn copy_out<'a>(&mut self, batch: impl Iterator<Item = &'a mut Body<Self::Hold, Self::Place>>)
    where
        Self: 'a;

    /// Takes the holds back.
    fn release(&mut self, from: &mut Reached<Self::Hold>);

    /// Whether [`settle`](Self::settle) has something to do.
    fn unsettled(&self) -> bool;

    /// Tells the engine which memory came to stay and which goes, in the terms of
    /// [`Engine::register`](crate::engine::Engine::register). Memory that went stays mapped until
    /// this was called.
    fn settle(&mut self, register: impl FnMut(u16, *mut u8, usize) -> bool);

    /// Called now and then while the guest asks for nothing: gives up what was not used since.
    fn idle(&mut self);

    /// Pages of the guest's that are kept reachable between requests.
    fn kept(&self) -> usize;

    /// Whether there is anything that [`idle`](Self::idle) could give up.
    fn holds_back(&self) -> bool;
}
