//! What a peer can do wrong on a ring.
//!
//! Plain values without allocation, so that the data path can count and answer them cheaply; one
//! becomes a [`PeerFault`] where a device is given up for it.

use hypervisor::{DomId, PeerFault};

use crate::RingIndex;

/// A rule of the ring, or of the protocol on it, that the peer broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The pages given for the ring have not room for one slot.
    #[error("{bytes} bytes are no ring for slots of {slot} bytes")]
    RingTooSmall {
        /// Bytes there are.
        bytes: usize,
        /// Bytes in one slot.
        slot: usize,
    },
    /// The frontend's producer index went back, or past the slots that were free.
    #[error("request producer {producer} with {consumer} taken and {free} slots free")]
    RequestProducer {
        /// What the frontend wrote.
        producer: RingIndex,
        /// Requests taken so far.
        consumer: RingIndex,
        /// Slots it may have filled since.
        free: u32,
    },
    /// The backend's producer index went back, or past the requests that were made.
    #[error("response producer {producer} with {consumer} taken and {outstanding} outstanding")]
    ResponseProducer {
        /// What the backend wrote.
        producer: RingIndex,
        /// Responses taken so far.
        consumer: RingIndex,
        /// Requests that it has not answered.
        outstanding: u32,
    },
    /// Where a ring was left and where it stands do not fit each other.
    #[error("ring resumed with {taken} requests taken and {answered} answered on {slots} slots")]
    Resumed {
        /// Requests taken so far.
        taken: RingIndex,
        /// Responses published so far.
        answered: RingIndex,
        /// Slots on the ring.
        slots: u32,
    },
    /// A request names more segments than its kind can have.
    #[error("{count} segments where {most} are the most")]
    SegmentCount {
        /// Segments claimed.
        count: u16,
        /// The most that there may be.
        most: u16,
    },
    /// An indirect request asks for something other than reading or writing.
    #[error("indirect operation {operation}")]
    IndirectOperation {
        /// The operation asked for.
        operation: u8,
    },
}

impl Fault {
    /// A short, constant name, to count by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RingTooSmall { .. } => "ring_too_small",
            Self::RequestProducer { .. } => "request_producer",
            Self::ResponseProducer { .. } => "response_producer",
            Self::Resumed { .. } => "resumed",
            Self::SegmentCount { .. } => "segment_count",
            Self::IndirectOperation { .. } => "indirect_operation",
        }
    }

    /// The same as `domain`'s doing.
    #[must_use]
    pub fn by(self, domain: DomId) -> PeerFault {
        PeerFault::new(domain, self.name(), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_message_says_who_did_what_with_which_value() {
        let fault =
            Fault::RequestProducer { producer: RingIndex(99), consumer: RingIndex(3), free: 32 };
        let said = fault.by(DomId::new(7).unwrap()).to_string();
        assert_eq!(
            said,
            "domain 7: request_producer: request producer 99 with 3 taken and 32 slots free"
        );
    }
}
