//! Takes requests off the ring, each once and by value.
//!
//! The first stage; after it: `segments`. From here on nothing reads shared memory for a request.
//! [`Requests`] is all that the path knows of where requests come from and where answers go, so
//! that other transports, or a journal around one, can stand there.
//!
//! Trust: what is taken is the peer's word, well-formed as bytes and nothing more. An index that
//! cannot be is a [`PeerFault`] and ends the device. Source: io/ring.h (RELEASE-4.17).

use hypervisor::{DomId, PeerFault};
use ring::shared::Words;
use ring::wire::blkif::{Blkif, Layout, Request, Response};
use ring::{Back, Notify, Recheck, ResponseSlot, RingIndex};

/// A request as the peer wrote it, and the duty to answer it.
#[derive(Debug)]
pub struct RawRequest<S> {
    /// What it says.
    pub asked: Request,
    /// What it is to be answered with.
    pub slot: S,
}

/// Where requests come from and answers go.
pub trait Requests {
    /// The right and the duty to answer one request.
    type Slot;

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    ///
    /// The peer broke the transport's protocol and is not to be believed any more.
    fn take(&mut self) -> Result<Option<RawRequest<Self::Slot>>, PeerFault>;

    /// Answers a request. The peer sees it with the next [`publish`](Self::publish).
    fn answer(&mut self, slot: Self::Slot, response: &Response);

    /// Gives a request up unanswered, because its transport ends or somebody else will answer.
    fn abandon(&mut self, slot: Self::Slot);

    /// Shows the peer every answer, and says whether it wants to be notified.
    fn publish(&mut self) -> Notify;

    /// Flushes cannot succeed any more, because of `errno`: whoever serves this transport next has to
    /// know. Said before that is seen by the peer, and again any number of times.
    fn lose(&mut self, errno: i32) {
        let _ = errno;
    }

    /// Before sleeping: asks to be notified of the next request, and looks once more.
    ///
    /// # Errors
    ///
    /// As for [`take`](Self::take).
    fn rearm(&mut self) -> Result<Recheck, PeerFault>;

    /// The most requests that can be taken and not answered at one time.
    fn slots(&self) -> u32;

    /// Requests taken and answers published so far, as the transport counts them.
    fn indexes(&self) -> (u32, u32);
}

/// A Xen ring in layout `L`.
#[derive(Debug)]
pub struct XenRing<L: Layout, M> {
    back: Back<Blkif<L>, M>,
    peer: DomId,
}

impl<L: Layout, M: Words> XenRing<L, M> {
    /// The ring that `peer` has in `memory`, from where it stands.
    ///
    /// # Errors
    ///
    /// There cannot be a ring like that.
    pub fn attach(memory: M, peer: DomId) -> Result<Self, PeerFault> {
        let back = Back::attach(memory).map_err(|fault| fault.by(peer))?;
        Ok(Self::over(back, peer))
    }

    /// A ring that somebody has attached to already.
    pub fn over(back: Back<Blkif<L>, M>, peer: DomId) -> Self {
        Self { back, peer }
    }

    /// The ring that `peer` has in `memory`, from where an earlier backend left it: `taken` requests
    /// taken and `published` of them answered. Also gives the slots to answer the others with.
    ///
    /// # Errors
    ///
    /// There cannot be a ring like that.
    pub fn resume(
        memory: M,
        peer: DomId,
        taken: RingIndex,
        published: RingIndex,
    ) -> Result<(Self, Vec<ResponseSlot>), PeerFault> {
        let back = Back::resume(memory, taken, published).map_err(|fault| fault.by(peer))?;
        let owed = back.owed().collect();
        Ok((Self::over(back, peer), owed))
    }
}

impl<L: Layout, M: Words> Requests for XenRing<L, M> {
    type Slot = ResponseSlot;

    #[inline]
    fn take(&mut self) -> Result<Option<RawRequest<ResponseSlot>>, PeerFault> {
        match self.back.take_request() {
            Ok(Some((asked, slot))) => Ok(Some(RawRequest { asked, slot })),
            Ok(None) => Ok(None),
            Err(fault) => Err(fault.by(self.peer)),
        }
    }

    #[inline]
    fn answer(&mut self, slot: ResponseSlot, response: &Response) {
        self.back.respond(slot, response);
    }

    fn abandon(&mut self, slot: ResponseSlot) {
        slot.abandon();
    }

    #[inline]
    fn publish(&mut self) -> Notify {
        self.back.publish()
    }

    fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        self.back.rearm().map_err(|fault| fault.by(self.peer))
    }

    fn slots(&self) -> u32 {
        self.back.slots()
    }

    fn indexes(&self) -> (u32, u32) {
        (self.back.taken().0, self.back.published().0)
    }
}
