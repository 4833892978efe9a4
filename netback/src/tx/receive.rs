//! Takes slots off the ring on which the guest sends, each once and by value.
//!
//! The first stage; after it: `assemble`. From here on nothing reads the ring for a packet. The slots
//! to be answered are kept here in the order in which they were taken, which is the order in which they
//! are answered: so the ring alone says what is outstanding, and a backend that comes after this one
//! finds all of it there. Of those that the one before was about to answer when it was killed, only the
//! chain can still be read: what was sent is sent, and they are answered as lost.
//!
//! Trust: what is taken is the peer's word, as bytes. An index that cannot be is a [`PeerFault`] and
//! ends the device. Source: io/ring.h, "Guest transmit" in io/netif.h (RELEASE-4.17).

use std::collections::VecDeque;

use hypervisor::memory::Memory;
use hypervisor::{DomId, PeerFault};
use ring::wire::netif;
use ring::wire::netif::tx::{Response, Slot};
use ring::{Back, Notify, Recheck, ResponseSlot};

/// The guest's end of sending.
#[derive(Debug)]
pub struct Receive<M> {
    back: Back<netif::Tx, M>,
    peer: DomId,
    /// Taken and not answered, oldest first.
    owed: VecDeque<ResponseSlot>,
    /// Slots yet to be taken that a backend before us may have answered.
    spoilt: u32,
}

impl<M: Memory> Receive<M> {
    /// The ring that `peer` has in `memory`, from where it stands.
    ///
    /// # Errors
    ///
    /// There cannot be a ring like that.
    pub fn attach(memory: M, peer: DomId) -> Result<Self, PeerFault> {
        let back = Back::attach(memory).map_err(|fault| fault.by(peer))?;
        let slots = usize::try_from(back.slots()).unwrap_or(0);
        let spoilt = back.noted().map_or(0, |note| note.slots());
        Ok(Self { back, peer, owed: VecDeque::with_capacity(slots), spoilt })
    }

    /// Takes the next slot, if there is one.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Slot>, PeerFault> {
        match self.back.take_request() {
            Ok(Some((slot, owed))) => {
                self.owed.push_back(owed);
                Ok(Some(slot))
            }
            Ok(None) => Ok(None),
            Err(fault) => Err(fault.by(self.peer)),
        }
    }

    /// Whether the chain that was just taken, of so many slots, was perhaps answered before: its pages are not
    /// known any more.
    #[inline]
    pub fn is_spoilt(&mut self, slots: usize) -> bool {
        if self.spoilt == 0 {
            return false;
        }
        self.spoilt = self.spoilt.saturating_sub(u32::try_from(slots).unwrap_or(u32::MAX));
        true
    }

    /// Notes that the oldest `slots` are about to be answered, all of them before the next publication.
    #[inline]
    pub fn note(&mut self, slots: usize) {
        self.back.note(u32::try_from(slots).unwrap_or(u32::MAX), std::iter::empty());
    }

    /// Answers the oldest slot that is owed an answer.
    #[inline]
    pub fn answer(&mut self, response: &Response) {
        if let Some(slot) = self.owed.pop_front() {
            self.back.respond(slot, response);
        }
    }

    /// Shows the guest every answer, and says whether it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        self.back.publish()
    }

    /// Before sleeping: asks to be notified of the next slot, and looks once more.
    ///
    /// # Errors
    ///
    /// As for [`take`](Self::take).
    pub fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        self.back.rearm().map_err(|fault| fault.by(self.peer))
    }

    /// Slots that were taken and are not answered.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Who sends.
    #[must_use]
    pub const fn peer(&self) -> DomId {
        self.peer
    }
}

impl<M> Drop for Receive<M> {
    fn drop(&mut self) {
        // With the ring; whoever comes next finds them there.
        self.owed.drain(..).for_each(ResponseSlot::abandon);
    }
}
