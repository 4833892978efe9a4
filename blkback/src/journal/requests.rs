//! Requests, from whichever transport, with a journal of them.

use std::collections::VecDeque;

use hypervisor::PeerFault;
use ring::shared::Words;
use ring::wire::blkif::{Layout, Request};
use ring::{Notify, Recheck, ResponseSlot};

use super::{Cells, Journal};
use crate::acquire::GuestMemory;
use crate::receive::{Answer, Duty, Gathered, RawRequest, Requests, Taken, XenRing};
use crate::segments::Segment;
use crate::validate::Refusal;

/// What is taken from `R`, written down in `C`. What an earlier process took and owes comes first.
#[derive(Debug)]
pub struct Journaled<R: Requests, C> {
    inner: R,
    journal: Journal<C>,
    again: VecDeque<RawRequest<R::Raw, Noted<R::Slot>>>,
}

/// The duty to answer a request, and where that is noted.
#[derive(Debug)]
pub struct Noted<S> {
    slot: S,
    entry: u32,
}

impl<L: Layout, M: Words, C: Cells> Journaled<XenRing<L, M>, C> {
    /// Keeps `journal` of what is taken from `inner`. `owed` was taken before, oldest first, by entry, and
    /// `slots` are to answer it with.
    pub fn new(
        inner: XenRing<L, M>,
        journal: Journal<C>,
        owed: Vec<(Request, u32)>,
        slots: Vec<ResponseSlot>,
    ) -> Self {
        let again = owed.into_iter().zip(slots);
        let again = again.map(|((asked, entry), slot)| {
            let slot = Noted { slot: Duty::new(slot, &asked), entry };
            RawRequest { asked, slot }
        });
        Self { inner, journal, again: again.collect() }
    }
}

impl<R: Requests<Raw = Request>, C: Cells> Requests for Journaled<R, C> {
    type Raw = Request;
    type Slot = Noted<R::Slot>;
    type Place = R::Place;

    #[inline]
    fn take(&mut self) -> Taken<Request, Self::Slot> {
        if let Some(owed) = self.again.pop_front() {
            return Ok(Some(owed));
        }
        let Some(RawRequest { asked, slot }) = self.inner.take()? else { return Ok(None) };
        match self.journal.take(&asked) {
            Some(entry) => Ok(Some(RawRequest { asked, slot: Noted { slot, entry } })),
            // It stays on the ring for whoever comes after us.
            None => {
                self.inner.abandon(slot);
                Ok(None)
            }
        }
    }

    #[inline]
    fn gather<G: GuestMemory<Place = R::Place>>(
        &mut self,
        asked: &Request,
        memory: &mut G,
        unit: u32,
        into: &mut Vec<Segment<R::Place>>,
    ) -> Result<Gathered, Refusal> {
        self.inner.gather(asked, memory, unit, into)
    }

    #[inline]
    fn answer(&mut self, slot: Self::Slot, answer: Answer) {
        let Noted { slot, entry } = slot;
        self.inner.answer(slot, answer);
        self.journal.answered(entry);
    }

    fn abandon(&mut self, slot: Self::Slot) {
        self.inner.abandon(slot.slot);
    }

    #[inline]
    fn publish(&mut self) -> Notify {
        let wanted = self.inner.publish();
        self.journal.published();
        wanted
    }

    fn lose(&mut self, errno: i32) {
        self.journal.lose(errno);
    }

    fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        if self.again.is_empty() { self.inner.rearm() } else { Ok(Recheck::More) }
    }

    fn slots(&self) -> u32 {
        self.inner.slots()
    }

    fn indexes(&self) -> (u32, u32) {
        self.inner.indexes()
    }
}

impl<R: Requests, C> Drop for Journaled<R, C> {
    fn drop(&mut self) {
        // Whoever comes after us finds them owed still.
        for owed in self.again.drain(..) {
            self.inner.abandon(owed.slot.slot);
        }
    }
}
