//! Follows slots to the ends of their chains, and decides what of them may go now.
//!
//! Before: `receive`. After: `copy_in`. A chain that may not go yet (`admit`) stays here, unanswered. Changes of
//! the multicast list are made here.
//!
//! Trust: every field of a slot is the peer's claim; a [`PeerFault`] where a chain breaks a rule after
//! which nobody knows where the next packet begins. Source: "Guest transmit", "Multicast" in
//! io/netif.h (RELEASE-4.17).

use hypervisor::memory::Memory;
use hypervisor::{PAGE_SIZE, PeerFault};
use ring::wire::netif::gather::{Chain, Content, Gather, Piece};

use super::admit::{Admit, Needs};
use super::receive::Receive;
use super::{Fate, Staged};
use crate::buffer::Buffer;
use crate::offload::Claims;
use crate::stats::Loss;

/// The chain that is being followed, or waits.
#[derive(Debug, Default)]
pub struct Assemble {
    gather: Gather,
    held: Option<Chain>,
    admit: Admit,
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
                    return Ok(Some(staged(chain, None, Fate::Lost(Loss::Interrupted))));
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
                let before = packet.pieces().map_while(before_a_page).sum();
                let Some(buffer) = self.admit.admit(usize::from(packet.size), before, needs) else {
                    self.held = Some(chain);
                    return Ok(None);
                };
                (Some(buffer), Fate::Done)
            }
        };
        self.admit.passed();
        Ok(Some(staged(chain, buffer, fate)))
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
        self.admit.until()
    }
}

fn staged(chain: Chain, buffer: Option<Buffer>, fate: Fate) -> Staged {
    let claims = match chain.content() {
        Content::Packet(packet) => packet.offload.into(),
        Content::Dropped(_) | Content::Multicast(_) => Claims::default(),
    };
    Staged { slots: chain.slots(), chain, buffer, claims, fate }
}

/// The bytes of a piece that comes before the first whole page.
fn before_a_page(piece: Piece) -> Option<usize> {
    let size = usize::from(piece.size);
    (size < PAGE_SIZE).then_some(size)
}
