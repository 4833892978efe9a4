//! The proof that a request was taken and is yet to be answered.
//!
//! Every request a backend takes comes with one, and giving it back is the only way to answer. It
//! cannot be copied, so no request is answered twice; and it may not be dropped, so none is
//! forgotten: a frontend that waits for an answer which never comes hangs its guest's disk.

use crate::RingIndex;

/// The right and the duty to answer one request on the ring it was taken from.
#[derive(Debug)]
#[must_use = "a request that is never answered hangs the frontend; `respond`, or `abandon` it with its ring"]
pub struct ResponseSlot {
    index: RingIndex,
}

impl ResponseSlot {
    #[inline]
    pub(crate) fn new(index: RingIndex) -> Self {
        Self { index }
    }

    /// The request's position on the ring: names it uniquely while it is outstanding.
    #[must_use]
    #[inline]
    pub fn index(&self) -> RingIndex {
        self.index
    }

    /// Gives the request up together with its ring, which is about to be unmapped or to be taken
    /// over by somebody who will answer.
    #[inline]
    pub fn abandon(self) {
        self.spend();
    }

    /// Ends the duty.
    #[inline]
    pub(crate) fn spend(self) {
        core::mem::forget(self);
    }
}

impl Drop for ResponseSlot {
    fn drop(&mut self) {
        debug_assert!(false, "the request at {} was dropped without an answer", self.index);
    }
}
