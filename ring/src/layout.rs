//! Where things lie on a ring.
//!
//! ```text
//!  0         4          8         12         16                64          64 + n * slot
//!  +---------+----------+---------+----------+-----------------+-----------+----
//!  | req_prod| req_event| rsp_prod| rsp_event| private, padding| slot 0    | ...
//!  +---------+----------+---------+----------+-----------------+-----------+----
//! ```
//!
//! Each word is 32 bits. There are as many slots as the largest power of two that fits, and an index
//! names the slot that it is modulo that number. Source: `DEFINE_RING_TYPES` and `__RING_SIZE` in
//! io/ring.h (RELEASE-4.17). Units: bytes.

/// Bytes in front of the first slot.
pub const HEADER: usize = 64;

/// The last bytes of `__pad`, in which no protocol keeps anything and which `SHARED_RING_INIT` zeroes: what a
/// backend leaves there tells a ring that it knows from another one in the same pages.
pub const MARK: usize = HEADER - 8;

/// One of the four words that the two ends share beside the slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// `req_prod`: the frontend has published requests up to here.
    RequestProducer,
    /// `req_event`: the backend wants to be told when requests reach this.
    RequestEvent,
    /// `rsp_prod`: the backend has published responses up to here.
    ResponseProducer,
    /// `rsp_event`: the frontend wants to be told when responses reach this.
    ResponseEvent,
}

impl Word {
    /// Where it lies from the start of the ring.
    #[must_use]
    #[inline]
    pub const fn offset(self) -> usize {
        match self {
            Self::RequestProducer => 0,
            Self::RequestEvent => 4,
            Self::ResponseProducer => 8,
            Self::ResponseEvent => 12,
        }
    }
}

/// How many slots of `slot` bytes a ring of `bytes` bytes has: a power of two, or 0 where not even
/// one fits.
#[must_use]
pub const fn slots(bytes: usize, slot: usize) -> u32 {
    let Some(fit) = bytes.saturating_sub(HEADER).checked_div(slot) else { return 0 };
    // An index must be able to tell a full ring from an empty one, so half its range is the limit.
    let fit = if fit > 1 << 31 { 1 << 31 } else { fit };
    match fit.checked_ilog2() {
        Some(bits) => 1 << bits,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lie_where_ring_h_puts_them() {
        assert_eq!(Word::RequestProducer.offset(), 0);
        assert_eq!(Word::RequestEvent.offset(), 4);
        assert_eq!(Word::ResponseProducer.offset(), 8);
        assert_eq!(Word::ResponseEvent.offset(), 12);
        // Four indexes, `pvt` (4 bytes) and `__pad[44]`.
        assert_eq!(HEADER, 4 * 4 + 4 + 44);
    }

    #[test]
    fn slots_are_the_largest_power_of_two_that_fits() {
        // blkif: 112 bytes, 108 for x86_32; netif Tx and Rx: 12 and 8.
        for (order, blkif) in [(0, 32), (1, 64), (2, 128), (3, 256), (4, 512)] {
            assert_eq!(slots(4096 << order, 112), blkif);
            assert_eq!(slots(4096 << order, 108), blkif);
        }
        assert_eq!(slots(4096, 12), 256);
        assert_eq!(slots(4096, 8), 256);
    }

    #[test]
    fn what_does_not_fit_is_no_slot() {
        assert_eq!(slots(0, 112), 0);
        assert_eq!(slots(64, 112), 0);
        assert_eq!(slots(64 + 111, 112), 0);
        assert_eq!(slots(64 + 112, 112), 1);
        assert_eq!(slots(4096, 0), 0);
        assert_eq!(slots(usize::MAX, 1), 1 << 31);
    }
}
