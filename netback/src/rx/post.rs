//! What the guest posted: pages for packets, taken off its ring when a whole packet has room.
//!
//! Before: `take`. After: `fit`. A guest that posts no pages holds its own packets up and nothing
//! else: they wait for a bounded time, and where it goes on for long, the guest counts as stalled and
//! its link is taken down until it posts again.
//!
//! Trust: an index that cannot be is a [`PeerFault`] and ends the device; that pages are few, or never
//! come, is the guest's right. Source: io/ring.h, "Guest receive" in io/netif.h (RELEASE-4.17); times
//! and what they mean as in Linux's xen-netback (v6.1). Units: nanoseconds.

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
    /// Pages that the first waiting packet needs, while there are fewer.
    wanted: Option<u32>,
    /// Since when there are too few.
    starved_since: Option<u64>,
    stalled: bool,
}

impl<M: Memory> Post<M> {
    /// The ring that `peer` has in `memory`, from where it stands.
    ///
    /// # Errors
    ///
    /// There cannot be a ring like that.
    pub fn attach(memory: M, peer: DomId) -> Result<Self, PeerFault> {
        let back = Back::attach(memory).map_err(|fault| fault.by(peer))?;
        Ok(Self { back, peer, wanted: None, starved_since: None, stalled: false })
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
    pub fn has(&mut self, slots: usize, now: u64) -> Result<bool, PeerFault> {
        let wanted = u32::try_from(slots).unwrap_or(u32::MAX);
        if self.back.look().map_err(|fault| fault.by(self.peer))? >= wanted {
            self.wanted = None;
            self.starved_since = None;
            return Ok(true);
        }
        self.wanted = Some(wanted);
        self.starved_since.get_or_insert(now);
        Ok(false)
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

    /// Whether what was last asked for is there by now.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    pub fn look_again(&mut self, now: u64) -> Result<(), PeerFault> {
        if let Some(wanted) = self.wanted {
            self.has(usize::try_from(wanted).unwrap_or(usize::MAX), now)?;
        }
        Ok(())
    }

    /// Nothing waits for pages any more.
    pub fn want_none(&mut self) {
        self.wanted = None;
        self.starved_since = None;
    }

    /// Before sleeping: where a packet waits for pages, asks to be notified when more are posted.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    pub fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        match self.wanted {
            Some(wanted) => self.back.rearm_for(wanted).map_err(|fault| fault.by(self.peer)),
            None => Ok(Recheck::Quiet),
        }
    }

    /// Since when too few pages are there for the packet that waits.
    #[must_use]
    pub const fn starved_since(&self) -> Option<u64> {
        self.starved_since
    }

    /// Whether that is so for longer than `patience`, where this is news.
    pub fn stall(&mut self, patience: u64, now: u64) -> Option<bool> {
        let since = self.starved_since;
        let stalled = since.is_some_and(|since| now.saturating_sub(since) >= patience);
        (std::mem::replace(&mut self.stalled, stalled) != stalled).then_some(stalled)
    }

    /// Whether the guest counts as stalled.
    #[must_use]
    pub const fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Who receives.
    #[must_use]
    pub const fn peer(&self) -> DomId {
        self.peer
    }
}
