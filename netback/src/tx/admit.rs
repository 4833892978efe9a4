//! Decides whether a packet that the guest wants to send may go now.
//!
//! Before: whoever follows what the guest wrote to the end of a packet. After: `copy_in`. What there is no credit,
//! no buffer or no room at the port for waits, and with it all that came after it; so a guest that sends faster
//! than it may is slowed down by its own ring.

use crate::buffer::{Buffer, Pool};
use crate::credit::Credit;
use crate::filter::Groups;
use crate::stats::Stats;

/// How long before a packet is tried again for which this machine had no memory: nobody says when it has.
const RETRY_NS: u64 = 10_000_000;

/// What the next packet needs to go.
pub struct Needs<'a> {
    /// Where its bytes will lie.
    pub pool: &'a mut Pool,
    /// How many more packets the port takes.
    pub room: usize,
    /// The rate of what the guest sends.
    pub credit: &'a Credit,
    /// The multicast list.
    pub groups: &'a Groups,
    /// Where to count.
    pub stats: &'a Stats,
    /// When it is, in nanoseconds.
    pub now: u64,
}

/// What the packet that waits, waits for.
#[derive(Debug, Default)]
pub struct Admit {
    /// When it is worth another try, where time is what it waits for.
    until: Option<u64>,
    /// Whether it waits for credit, which is counted once for each packet.
    unpaid: bool,
}

impl Admit {
    /// A buffer for a packet of `size` bytes, which is laid such that what comes `before` bytes behind its
    /// beginning begins a page; nothing where the packet has to wait.
    #[inline]
    pub fn admit(&mut self, size: usize, before: usize, needs: &mut Needs<'_>) -> Option<Buffer> {
        let buffer = if needs.room == 0 { None } else { needs.pool.take() };
        let Some(mut buffer) = buffer else {
            // Where room is what is missing, the port says when there is some.
            let retry = needs.now.saturating_add(RETRY_NS);
            self.until = (needs.room > 0).then_some(retry);
            return None;
        };
        if let Err(until) = needs.credit.admit(size, needs.now) {
            self.until = Some(until);
            if !std::mem::replace(&mut self.unpaid, true) {
                needs.stats.tx_held.add(1);
            }
            needs.pool.put(buffer);
            return None;
        }
        buffer.lay(before);
        buffer.set_len(size);
        needs.room = needs.room.saturating_sub(1);
        self.passed();
        Some(buffer)
    }

    /// Nothing waits any more.
    #[inline]
    pub fn passed(&mut self) {
        (self.until, self.unpaid) = (None, false);
    }

    /// Until when, where it is time that the packet waits for.
    #[must_use]
    pub const fn until(&self) -> Option<u64> {
        self.until
    }
}
