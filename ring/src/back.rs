//! The backend's end of a ring: takes requests off it and puts responses on.
//!
//! The frontend is not trusted. What it controls is the request producer, checked against the slots
//! that it can have filled, and the requests' bytes, copied out once (advisory 155): whatever it
//! writes into a slot afterwards reaches nobody.
//!
//! A response goes into the next slot in turn, whichever request it answers. There is always room
//! for it: responses are as many as requests were taken, because each consumes the
//! [`ResponseSlot`] that came with one.
//!
//! Source: `BACK_RING_*`, `RING_REQUEST_PROD_OVERFLOW`, `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`,
//! `RING_FINAL_CHECK_FOR_REQUESTS` in io/ring.h (RELEASE-4.17).

use core::fmt;
use core::marker::PhantomData;

use crate::layout::Word;
use crate::note::Note;
use crate::protocol::SlotBytes;
use crate::shared::{Shared, Words};
use crate::{Fault, Notify, Protocol, Recheck, ResponseSlot, RingIndex};

/// The backend's role on a ring in `M` that speaks `P`.
pub struct Back<P: Protocol, M> {
    shared: Shared<M>,
    /// Requests taken.
    taken: RingIndex,
    /// Requests known to be there, checked.
    seen: RingIndex,
    /// Responses written, of which those up to `published` are visible.
    answered: RingIndex,
    published: RingIndex,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol, M: Words> Back<P, M> {
    /// Attaches where the ring stands: at the first request that has no published response. That is
    /// the beginning of a new ring.
    ///
    /// # Errors
    ///
    /// [`Fault::RingTooSmall`]; [`Fault::RequestProducer`] where more requests are outstanding than
    /// there are slots.
    pub fn attach(memory: M) -> Result<Self, Fault> {
        let shared = Shared::new(memory, P::Slot::LEN)?;
        let at = shared.load(Word::ResponseProducer);
        Self::over(shared, at, at)
    }

    /// Attaches to a ring that an earlier backend left, with `taken` requests taken and `answered`
    /// of them answered and published. The difference is owed: [`Self::owed`] gives the slots to
    /// answer those with.
    ///
    /// # Errors
    ///
    /// [`Fault::RingTooSmall`]; [`Fault::Resumed`] where the two cannot be on a ring of this size;
    /// [`Fault::RequestProducer`] where the frontend's index does not fit them.
    pub fn resume(memory: M, taken: RingIndex, answered: RingIndex) -> Result<Self, Fault> {
        let shared = Shared::new(memory, P::Slot::LEN)?;
        let slots = shared.slots();
        if taken.since(answered) > slots {
            return Err(Fault::Resumed { taken, answered, slots });
        }
        Self::over(shared, taken, answered)
    }

    fn over(shared: Shared<M>, taken: RingIndex, answered: RingIndex) -> Result<Self, Fault> {
        let mut back = Self {
            shared,
            taken,
            seen: taken,
            answered,
            published: answered,
            protocol: PhantomData,
        };
        back.look()?;
        Ok(back)
    }

    /// The slots of requests that were taken before [`Self::resume`] and not answered, oldest
    /// first. To be called once, right after it.
    pub fn owed(&self) -> impl Iterator<Item = ResponseSlot> + use<P, M> {
        let first = self.answered;
        (0..self.outstanding()).map(move |n| ResponseSlot::new(first.add(n)))
    }

    /// Leaves word on the ring that the next `answers` of the requests taken are about to be answered, for a
    /// backend that comes after this one is killed before it [published](Self::publish) them. Everything
    /// answered before is to be published. `ids` are those, by place among these slots, of which
    /// the answers keep nothing: [`MOST_IDS`](crate::note::MOST_IDS) at most.
    #[inline]
    pub fn note(&mut self, answers: u32, ids: impl Iterator<Item = (u32, u16)>) {
        debug_assert!(self.answered == self.published, "a note holds from what is published on");
        Note::leave(self.shared.memory(), self.published, self.published.add(answers), ids);
    }

    /// The word that the backend before this one left of answers which it did not come to publish: what lies
    /// in so many slots may be answers as well as requests. To be asked before anything is taken.
    #[must_use]
    pub fn noted(&self) -> Option<Note> {
        Note::find(self.shared.memory(), self.published, self.seen)
    }

    /// How many slots the ring has.
    #[must_use]
    #[inline]
    pub fn slots(&self) -> u32 {
        self.shared.slots()
    }

    /// How many requests were taken and are not answered.
    #[must_use]
    #[inline]
    pub fn outstanding(&self) -> u32 {
        self.taken.since(self.answered)
    }

    /// Requests taken since the ring was made.
    #[must_use]
    #[inline]
    pub fn taken(&self) -> RingIndex {
        self.taken
    }

    /// Responses published since the ring was made.
    #[must_use]
    #[inline]
    pub fn published(&self) -> RingIndex {
        self.published
    }

    /// Takes the next request, by value, with the slot to answer it.
    ///
    /// The producer index is looked at again only when everything seen before was taken, so that
    /// taking a batch costs one look. A frontend that goes on producing while it is answered can
    /// make a loop over this one endless: bound it.
    ///
    /// # Errors
    ///
    /// [`Fault::RequestProducer`]: the frontend is not to be believed any more.
    #[inline]
    pub fn take_request(&mut self) -> Result<Option<(P::Request, ResponseSlot)>, Fault> {
        if self.taken == self.seen && self.look()? == 0 {
            return Ok(None);
        }
        let index = self.taken;
        let mut slot = P::Slot::ZERO;
        self.shared.copy_out(index, P::Slot::LEN, slot.as_mut());
        self.taken = index.add(1);
        Ok(Some((P::decode_request(&slot), ResponseSlot::new(index))))
    }

    /// How many requests there are to take.
    ///
    /// # Errors
    ///
    /// [`Fault::RequestProducer`].
    #[inline]
    pub fn look(&mut self) -> Result<u32, Fault> {
        let producer = self.shared.load(Word::RequestProducer);
        let ready = producer.since(self.taken);
        // Stricter than `RING_REQUEST_PROD_OVERFLOW`, which does not see an index that went back
        // under what was taken: such a one looks as if it were far ahead. A slot is free for a
        // request once its response is published; one that is only written does not count.
        let free = self.slots().wrapping_sub(self.taken.since(self.published));
        if ready > free || ready < self.seen.since(self.taken) {
            return Err(Fault::RequestProducer { producer, consumer: self.taken, free });
        }
        self.seen = producer;
        Ok(ready)
    }

    /// Writes the response to a request taken from this ring. The frontend does not see it before
    /// [`Self::publish`].
    #[inline]
    pub fn respond(&mut self, slot: ResponseSlot, response: &P::Response) {
        slot.spend();
        // Only a slot of another ring can bring us here with nothing outstanding; answering it
        // would overwrite a request that was not taken yet.
        debug_assert!(self.outstanding() > 0, "a slot of another ring");
        if self.outstanding() == 0 {
            return;
        }
        let mut answer = P::Answer::ZERO;
        P::encode_response(response, &mut answer);
        self.shared.copy_in(self.answered, P::Slot::LEN, answer.as_ref());
        self.answered = self.answered.add(1);
    }

    /// Shows the frontend every response written so far.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let old = core::mem::replace(&mut self.published, self.answered);
        if self.shared.publish(Word::ResponseProducer, Word::ResponseEvent, old, self.answered) {
            Notify::Needed
        } else {
            Notify::No
        }
    }

    /// Before sleeping: asks to be notified of the next request, and looks once more.
    ///
    /// # Errors
    ///
    /// [`Fault::RequestProducer`].
    #[inline]
    pub fn rearm(&mut self) -> Result<Recheck, Fault> {
        if self.look()? > 0 {
            return Ok(Recheck::More);
        }
        self.shared.arm(Word::RequestEvent, self.taken);
        Ok(if self.look()? > 0 { Recheck::More } else { Recheck::Quiet })
    }

    /// As [`rearm`](Self::rearm), where it takes `wanted` requests to go on: asks to be notified of
    /// the next one after those that are there. More requests than the ring has slots never come.
    ///
    /// # Errors
    ///
    /// [`Fault::RequestProducer`].
    pub fn rearm_for(&mut self, wanted: u32) -> Result<Recheck, Fault> {
        let mut ready = self.look()?;
        // Each turn but the last found more than the one before, so there are few.
        while ready < wanted {
            self.shared.arm(Word::RequestEvent, self.seen);
            let before = core::mem::replace(&mut ready, self.look()?);
            if ready == before {
                return Ok(Recheck::Quiet);
            }
        }
        Ok(Recheck::More)
    }

    /// The memory the ring lies in.
    #[must_use]
    pub fn memory(&self) -> &M {
        self.shared.memory()
    }

    /// Gives the memory back and forgets the ring.
    #[must_use]
    pub fn into_memory(self) -> M {
        self.shared.into_memory()
    }
}

impl<P: Protocol, M> fmt::Debug for Back<P, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Back")
            .field("taken", &self.taken)
            .field("seen", &self.seen)
            .field("answered", &self.answered)
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}
