//! The frontend's end of a ring: puts requests on it and takes responses off.
//!
//! The backend is not trusted. What it controls is the response producer, checked against the
//! requests that were really made, and the responses' bytes, copied out once. Whether a response
//! answers a request that is outstanding is for the driver to check, against a private record of
//! its own (advisories 376, 391).
//!
//! Source: `FRONT_RING_*`, `RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`,
//! `RING_FINAL_CHECK_FOR_RESPONSES` in io/ring.h (RELEASE-4.17).

use core::fmt;
use core::marker::PhantomData;

use crate::layout::{self, Word};
use crate::protocol::SlotBytes;
use crate::shared::{Shared, Words};
use crate::{Fault, Notify, Protocol, Recheck, RingIndex};

/// Where the words end and `pvt` and `__pad` begin.
const PRIVATE: usize = 16;

/// The frontend's role on a ring in `M` that speaks `P`.
pub struct Front<P: Protocol, M> {
    shared: Shared<M>,
    /// Requests pushed, of which those up to `published` are visible.
    pushed: RingIndex,
    published: RingIndex,
    /// Responses taken.
    taken: RingIndex,
    /// Responses known to be there, checked.
    seen: RingIndex,
    protocol: PhantomData<fn() -> P>,
}

/// There is no free slot: take responses first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no free slot on the ring")]
pub struct Full;

impl<P: Protocol, M: Words> Front<P, M> {
    /// Writes an empty ring into `memory`, which no backend uses yet.
    ///
    /// # Errors
    ///
    /// [`Fault::RingTooSmall`].
    pub fn init(memory: M) -> Result<Self, Fault> {
        Self::init_at(memory, RingIndex(0))
    }

    /// The same with indexes that begin at `start`. Any start is legal: a backend attaches where
    /// the ring says that it stands.
    ///
    /// # Errors
    ///
    /// [`Fault::RingTooSmall`].
    pub fn init_at(memory: M, start: RingIndex) -> Result<Self, Fault> {
        let shared = Shared::new(memory, P::Slot::LEN)?;
        // What the pages held before is not the backend's to see, and a slot is written over only
        // when its turn comes. The words are stored one by one below.
        shared.memory().copy_in(PRIVATE, &[0; layout::HEADER - PRIVATE]);
        for n in 0..shared.slots() {
            shared.copy_in(RingIndex(n), P::Slot::LEN, P::Slot::ZERO.as_ref());
        }
        shared.store(Word::RequestEvent, start.add(1));
        shared.store(Word::ResponseEvent, start.add(1));
        shared.store(Word::ResponseProducer, start);
        shared.store(Word::RequestProducer, start);
        Ok(Self {
            shared,
            pushed: start,
            published: start,
            taken: start,
            seen: start,
            protocol: PhantomData,
        })
    }

    /// How many slots the ring has.
    #[must_use]
    #[inline]
    pub fn slots(&self) -> u32 {
        self.shared.slots()
    }

    /// How many requests can be pushed now.
    #[must_use]
    #[inline]
    pub fn free(&self) -> u32 {
        self.slots().wrapping_sub(self.outstanding())
    }

    /// How many requests were pushed and are not answered, as far as responses were taken.
    #[must_use]
    #[inline]
    pub fn outstanding(&self) -> u32 {
        self.pushed.since(self.taken)
    }

    /// How far responses were taken: the position of the next one. Where a backend answers in order,
    /// that is the position which [`Self::push`] gave for the request it answers.
    #[must_use]
    #[inline]
    pub fn taken(&self) -> RingIndex {
        self.taken
    }

    /// Writes a request into the next free slot. The backend does not see it before
    /// [`Self::publish`].
    ///
    /// # Errors
    ///
    /// [`Full`]; nothing was written.
    #[inline]
    pub fn push(&mut self, request: &P::Request) -> Result<RingIndex, Full> {
        if self.free() == 0 {
            return Err(Full);
        }
        let index = self.pushed;
        let mut slot = P::Slot::ZERO;
        P::encode_request(request, &mut slot);
        self.shared.copy_in(index, P::Slot::LEN, slot.as_ref());
        self.pushed = index.add(1);
        Ok(index)
    }

    /// Shows the backend every request pushed so far.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let old = core::mem::replace(&mut self.published, self.pushed);
        if self.shared.publish(Word::RequestProducer, Word::RequestEvent, old, self.pushed) {
            Notify::Needed
        } else {
            Notify::No
        }
    }

    /// Takes the next response, by value.
    ///
    /// The producer index is looked at again only when everything seen before was taken, so that
    /// taking a batch costs one look.
    ///
    /// # Errors
    ///
    /// [`Fault::ResponseProducer`]: the backend is not to be believed any more.
    #[inline]
    pub fn take_response(&mut self) -> Result<Option<P::Response>, Fault> {
        if self.taken == self.seen && self.look()? == 0 {
            return Ok(None);
        }
        let mut answer = P::Answer::ZERO;
        self.shared.copy_out(self.taken, P::Slot::LEN, answer.as_mut());
        self.taken = self.taken.add(1);
        Ok(Some(P::decode_response(&answer)))
    }

    /// How many responses there are to take.
    ///
    /// # Errors
    ///
    /// [`Fault::ResponseProducer`].
    #[inline]
    pub fn look(&mut self) -> Result<u32, Fault> {
        let producer = self.shared.load(Word::ResponseProducer);
        let ready = producer.since(self.taken);
        // Only what was published can have been answered; an index that went back looks as if
        // it were far ahead. Both bounds matter: `seen` must not go back under a taken index.
        let outstanding = self.published.since(self.taken);
        if ready > outstanding || ready < self.seen.since(self.taken) {
            return Err(Fault::ResponseProducer { producer, consumer: self.taken, outstanding });
        }
        self.seen = producer;
        Ok(ready)
    }

    /// Before sleeping: asks to be notified of the next response, and looks once more.
    ///
    /// # Errors
    ///
    /// [`Fault::ResponseProducer`].
    #[inline]
    pub fn rearm(&mut self) -> Result<Recheck, Fault> {
        if self.look()? > 0 {
            return Ok(Recheck::More);
        }
        self.shared.arm(Word::ResponseEvent, self.taken);
        Ok(if self.look()? > 0 { Recheck::More } else { Recheck::Quiet })
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

impl<P: Protocol, M> fmt::Debug for Front<P, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("pushed", &self.pushed)
            .field("published", &self.published)
            .field("taken", &self.taken)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}
