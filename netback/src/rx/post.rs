//! What the guest posted: pages for packets, taken off its ring when a whole packet has room.
//!
//! Before: `take`. After: `fit`.
//!
//! Trust: an index that cannot be is a [`PeerFault`] and ends the device; that pages are few, or never
//! come, is the guest's right. Source: io/ring.h, "Guest receive" in io/netif.h (RELEASE-4.17).

use hypervisor::memory::Memory;
use hypervisor::{DomId, PeerFault};
use ring::wire::netif;
use ring::wire::netif::rx::{Flags, Request, Response, Slot};
use ring::{Back, Notify, Recheck, ResponseSlot};

use super::fit::{Answer, Page};

/// The guest's end of receiving.
#[derive(Debug)]
pub struct Post<M> {
    back: Back<netif::Rx, M>,
    peer: DomId,
}

impl<M: Memory> Post<M> {
    /// The ring that `peer` has in `memory`, from where it stands.
    ///
    /// # Errors
    ///
    /// There cannot be a ring like that.
    pub fn attach(memory: M, peer: DomId) -> Result<Self, PeerFault> {
        let back = Back::attach(memory).map_err(|fault| fault.by(peer))?;
        Ok(Self { back, peer })
    }

    /// Gives back the pages that a backend before us was about to answer when it was killed, as failed: which of
    /// them have a packet is not known, nor where they are. Says how many there were.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    pub fn give_up_spoilt(&mut self) -> Result<u32, PeerFault> {
        let Some(note) = self.back.noted() else { return Ok(0) };
        self.back.note(note.slots(), note.ids());
        for place in 0..note.slots() {
            let Some((mut request, slot)) = self.take()? else { break };
            if let Some(id) = note.id(place) {
                request.id = id;
            }
            self.answer(slot, &Response::failed(request, Flags::NONE).into());
        }
        // That there are answers is told whoever is gone on with.
        let _ = self.publish();
        Ok(note.slots())
    }

    /// Notes that `pages` are about to be answered, all of them before the next publication.
    #[inline]
    pub fn note(&mut self, pages: &[Page]) {
        let covered = |page: &&Page| matches!(page.answer, Answer::Extra(_));
        let first = pages.first().map(|page| page.owed.index());
        let place = |page: &Page| first.map_or(0, |first| page.owed.index().since(first));
        let ids = pages.iter().filter(covered).map(|page| (place(page), page.id));
        self.back.note(u32::try_from(pages.len()).unwrap_or(u32::MAX), ids);
    }

    /// Whether pages for a packet of so many slots are there.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    #[inline]
    pub fn has(&mut self, slots: usize) -> Result<bool, PeerFault> {
        let wanted = u32::try_from(slots).unwrap_or(u32::MAX);
        Ok(self.back.look().map_err(|fault| fault.by(self.peer))? >= wanted)
    }

    /// Takes the next page.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    #[inline]
    pub fn take(&mut self) -> Result<Option<(Request, ResponseSlot)>, PeerFault> {
        self.back.take_request().map_err(|fault| fault.by(self.peer))
    }

    /// Answers the page that was taken first of those that are not answered.
    #[inline]
    pub fn answer(&mut self, slot: ResponseSlot, response: &Slot) {
        self.back.respond(slot, response);
    }

    /// Shows the guest every answer, and says whether it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        self.back.publish()
    }

    /// Asks to be notified once pages for a packet of so many slots are there, and looks once more.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    pub fn rearm(&mut self, slots: usize) -> Result<Recheck, PeerFault> {
        let wanted = u32::try_from(slots).unwrap_or(u32::MAX);
        self.back.rearm_for(wanted).map_err(|fault| fault.by(self.peer))
    }

    /// Who receives.
    #[must_use]
    pub const fn peer(&self) -> DomId {
        self.peer
    }
}
