//! Follows slots to the ends of their chains, and decides what of them may go now.
//!
//! Before: `receive`. After: `copy_in`. A chain for which there is no credit, no buffer or no room at
//! the port stays here, unanswered, and with it all that came after it; so a guest that sends faster
//! than it may is slowed down by its own ring. Changes of the multicast list are made here.
//!
//! Trust: every field of a slot is the peer's claim; a [`PeerFault`] where a chain breaks a rule after
//! which nobody knows where the next packet begins. Source: "Guest transmit", "Multicast" in
//! io/netif.h (RELEASE-4.17).

use hypervisor::memory::Memory;
use hypervisor::{PAGE_SIZE, PeerFault};
use ring::wire::netif::gather::{Chain, Content, Gather, Piece};

use super::receive::Receive;
use super::{Fate, Staged};
use crate::buffer::Pool;
use crate::credit::Credit;
use crate::filter::Groups;
use crate::stats::{Loss, Stats};

/// The chain that is being followed, or waits.
#[derive(Debug, Default)]
pub struct Assemble {
    gather: Gather,
    held: Option<Chain>,
    /// When the held one is worth another try, where time is what it waits for.
    until: Option<u64>,
    /// Whether it waits for credit, which is counted once for each chain.
    unpaid: bool,
}

/// How long before a chain is tried again for which this machine had no memory: nobody says when it has.
const RETRY_NS: u64 = 10_000_000;

/// What the next chain needs to go.
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

impl Assemble {
    /// The next chain that may go; nothing where there is none or it has to wait.
    ///
    /// # Errors
    ///
    /// The guest broke a rule of rings or chains.
    #[inline]
    pub fn next<M: Memory>(
        &mut self,
        receive: &mut Receive<M>,
        needs: &mut Needs<'_>,
    ) -> Result<Option<Staged>, PeerFault> {
        let chain = match self.held.take() {
            Some(chain) => chain,
            None => match self.follow(receive)? {
                Some(chain) if receive.is_spoilt(chain.slots()) => {
                    let fate = Fate::Lost(Loss::Interrupted);
                    return Ok(Some(Staged { chain, buffer: None, fate }));
                }
                Some(chain) => chain,
                None => return Ok(None),
            },
        };
        let (buffer, fate) = match chain.content() {
            Content::Dropped(why) => (None, Fate::Lost(why.into())),
            Content::Multicast(change) => {
                let made = needs.groups.change(change);
                (None, if made { Fate::Done } else { Fate::Lost(Loss::Multicast) })
            }
            Content::Packet(packet) => {
                let size = usize::from(packet.size);
                let buffer = if needs.room == 0 { None } else { needs.pool.take() };
                let Some(mut buffer) = buffer else {
                    // Where room is what is missing, the port says when there is some.
                    let retry = needs.now.saturating_add(RETRY_NS);
                    self.until = (needs.room > 0).then_some(retry);
                    self.held = Some(chain);
                    return Ok(None);
                };
                if let Err(until) = needs.credit.admit(size, needs.now) {
                    self.until = Some(until);
                    if !std::mem::replace(&mut self.unpaid, true) {
                        needs.stats.tx_held.add(1);
                    }
                    needs.pool.put(buffer);
                    self.held = Some(chain);
                    return Ok(None);
                }
                buffer.lay(packet.pieces().map_while(before_a_page).sum());
                buffer.set_len(size);
                needs.room = needs.room.saturating_sub(1);
                (Some(buffer), Fate::Done)
            }
        };
        (self.until, self.unpaid) = (None, false);
        Ok(Some(Staged { chain, buffer, fate }))
    }

    #[inline]
    fn follow<M: Memory>(&mut self, receive: &mut Receive<M>) -> Result<Option<Chain>, PeerFault> {
        loop {
            let Some(slot) = receive.take()? else {
                self.gather.end().map_err(|fault| fault.by(receive.peer()))?;
                return Ok(None);
            };
            // A chain has an end whatever the guest writes, and so has this.
            if let Some(chain) =
                self.gather.feed(&slot).map_err(|fault| fault.by(receive.peer()))?
            {
                return Ok(Some(chain));
            }
        }
    }

    /// Whether a chain waits here, for something else than the guest.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Until when, where it is time that it waits for.
    #[must_use]
    pub const fn until(&self) -> Option<u64> {
        self.until
    }
}

/// The bytes of a piece that comes before the first whole page.
fn before_a_page(piece: Piece) -> Option<usize> {
    let size = usize::from(piece.size);
    (size < PAGE_SIZE).then_some(size)
}
