//! Takes requests off the ring, each once and by value.
//!
//! The first stage; after it: `segments`. From here on nothing reads shared memory for a request.
//! [`Requests`] is all that the path knows of where requests come from and where answers go, so
//! that other transports, or a journal around one, can stand there.
//!
//! Trust: what is taken is the peer's word, well-formed as bytes and nothing more. An index that
//! cannot be is a [`PeerFault`] and ends the device. Source: io/ring.h (RELEASE-4.17).

mod virtio;

use hypervisor::{DomId, PeerFault};
use ring::shared::Words;
use ring::wire::blkif::{Blkif, Kind, Layout, Request, Response, Status, operation};
use ring::{Back, Notify, Recheck, ResponseSlot, RingIndex};

use crate::acquire::{GuestMemory, InPage};
use crate::segments::{Asked, Gather, Segment};
use crate::validate::Refusal;

pub use virtio::{Asking, Owed, VirtioQueue};

/// A request as the peer wrote it, and the duty to answer it.
#[derive(Debug)]
pub struct RawRequest<R, S> {
    /// What it says, in the transport's own words.
    pub asked: R,
    /// What it is to be answered with.
    pub slot: S,
}

/// A request, if there is one, from a peer that keeps to the transport's protocol.
pub type Taken<R, S> = Result<Option<RawRequest<R, S>>, PeerFault>;

/// What a guest is told of its request: it learns no more than this on any transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// It was not.
    Failed,
    /// There is no such thing here, and asking again is of no use.
    Unsupported,
}

/// What became of a request when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// It asks something of the disk.
    Asked(Asked),
    /// It asks the same of several ranges of the disk, which [`Requests::ranges`] has.
    Ranges,
    /// The transport has done it: it has nothing to do with the disk.
    Done,
}

impl From<Asked> for Gathered {
    fn from(asked: Asked) -> Self {
        Self::Asked(asked)
    }
}

/// Where requests come from and answers go.
pub trait Requests {
    /// A request as it was taken, before anything of it is checked.
    type Raw;
    /// The right and the duty to answer one request.
    type Slot;
    /// How the transport names where bytes of the guest's lie.
    type Place;

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    ///
    /// The peer broke the transport's protocol and is not to be believed any more.
    fn take(&mut self) -> Taken<Self::Raw, Self::Slot>;

    /// What the request that was taken last asks for, and in `into` where its data lies. Sectors of the
    /// disk have `unit` bytes.
    ///
    /// # Errors
    ///
    /// What it says of its data cannot be.
    fn gather<G: GuestMemory<Place = Self::Place>>(
        &mut self,
        asked: &Self::Raw,
        memory: &mut G,
        unit: u32,
        into: &mut Vec<Segment<Self::Place>>,
    ) -> Result<Gathered, Refusal>;

    /// What was asked by the request that was gathered last, where that was [`Gathered::Ranges`].
    fn ranges(&self) -> &[Asked] {
        &[]
    }

    /// Answers a request. The peer sees it with the next [`publish`](Self::publish).
    fn answer(&mut self, slot: Self::Slot, answer: Answer);

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
    gather: Gather,
}

/// The duty to answer a request on a Xen ring, and what of the request the answer repeats.
#[derive(Debug)]
pub struct Duty {
    slot: ResponseSlot,
    id: u64,
    operation: u8,
}

impl Duty {
    /// To answer `request` in `slot`. Of an indirect request, the answer has the operation inside: stock
    /// frontends compare it with that.
    #[inline]
    #[must_use]
    pub fn new(slot: ResponseSlot, request: &Request) -> Self {
        let operation = match &request.kind {
            Kind::Indirect(indirect) => match indirect.is_write() {
                Ok(false) => operation::READ,
                Ok(true) => operation::WRITE,
                Err(_) => request.operation,
            },
            _ => request.operation,
        };
        Self { slot, id: request.id, operation }
    }

    /// The ring's slot.
    pub const fn slot(&self) -> &ResponseSlot {
        &self.slot
    }

    /// What the frontend is told by `answer`.
    #[inline]
    #[must_use]
    pub const fn response(&self, answer: Answer) -> Response {
        let status = match answer {
            Answer::Done => Status::OKAY,
            Answer::Failed => Status::ERROR,
            Answer::Unsupported => Status::NOT_SUPPORTED,
        };
        Response { id: self.id, operation: self.operation, status }
    }
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
        Self { back, peer, gather: Gather::new(0) }
    }

    /// The same, where indirect requests may have `most` segments.
    #[must_use]
    pub fn with_indirect(mut self, most: u16) -> Self {
        self.gather = Gather::new(most);
        self
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
    type Raw = Request;
    type Slot = Duty;
    type Place = InPage;

    #[inline]
    fn take(&mut self) -> Taken<Request, Duty> {
        match self.back.take_request() {
            Ok(Some((asked, slot))) => {
                let slot = Duty::new(slot, &asked);
                Ok(Some(RawRequest { asked, slot }))
            }
            Ok(None) => Ok(None),
            Err(fault) => Err(fault.by(self.peer)),
        }
    }

    #[inline]
    fn gather<G: GuestMemory<Place = InPage>>(
        &mut self,
        asked: &Request,
        memory: &mut G,
        unit: u32,
        into: &mut Vec<Segment<InPage>>,
    ) -> Result<Gathered, Refusal> {
        self.gather.gather(asked, memory, unit, into).map(Gathered::Asked)
    }

    #[inline]
    fn answer(&mut self, slot: Duty, answer: Answer) {
        let response = slot.response(answer);
        self.back.respond(slot.slot, &response);
    }

    fn abandon(&mut self, slot: Duty) {
        slot.slot.abandon();
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
