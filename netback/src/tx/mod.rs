//! What the guest sends.
//!
//! ```text
//! receive -> assemble -> copy_in -> validate -> send -> respond
//! ```
//!
//! A round takes up to [`BATCH`] packets, or about a quarter of a ring, through all stages: one copy from the
//! guest's pages, one publication of answers. A [`Source`] is what a transport has of it: taking and copying what
//! the guest wrote, and answering. Xen's is in [`xen`], and its stages are `receive`, `assemble`, `copy_in` and
//! `respond`; a virtqueue's is in [`virtio`].

pub mod receive;
pub mod assemble;
pub mod admit;
pub mod copy_in;
pub mod validate;
pub mod respond;
pub mod virtio;
pub mod xen;

use std::collections::VecDeque;
use std::fmt::Debug;

use hypervisor::PeerFault;
use ring::wire::netif::gather::Chain;
use ring::{Notify, Recheck};

use crate::buffer::{Buffer, Pool};
use crate::offload::Claims;
use crate::port::Port;
use crate::queue::Around;
use crate::stats::{Loss, Stats};
use admit::Needs;

/// Packets that are taken in one round at most.
pub const BATCH: usize = 128;

/// Slots after which no further packet is taken in a round. A few large packets are all that a ring
/// holds: were they all taken before any is answered, guest and backend would wait for each other in turn.
const SLOTS: usize = 64;

/// Where the guest's packets come from, and where it is told that they were taken. They are answered in the
/// order in which they were taken.
pub trait Source {
    /// What the guest wrote of one packet, and the duty to answer it.
    type Chain: Debug;

    /// The next packet that may go; nothing where there is none or it has to wait.
    ///
    /// # Errors
    ///
    /// The guest broke a rule of the transport.
    fn next(&mut self, needs: &mut Needs<'_>) -> Result<Option<Staged<Self::Chain>>, PeerFault>;

    /// Copies all of these packets into their buffers, before any of them is answered. What cannot be
    /// copied is lost.
    fn copy_in(&mut self, staged: &mut VecDeque<Staged<Self::Chain>>, stats: &Stats);

    /// Answers the packet that was taken first of those that are not answered.
    fn answer(&mut self, chain: Self::Chain, fate: Fate);

    /// Shows the guest every answer, and says whether it wants to be notified.
    fn publish(&mut self) -> Notify;

    /// Before sleeping: asks to be notified of what comes, unless what is there has to wait anyway.
    ///
    /// # Errors
    ///
    /// The guest broke a rule of the transport.
    fn rearm(&mut self) -> Result<Recheck, PeerFault>;

    /// When what waits is worth another try, where time is what it waits for.
    fn until(&self) -> Option<u64>;

    /// Slots that were taken and are not answered.
    fn owed(&self) -> usize;
}

/// A packet on its way, or what else the guest wrote in the place of one.
#[derive(Debug)]
pub struct Staged<C = Chain> {
    /// What the guest wrote.
    pub chain: C,
    /// Slots of its ring that it takes.
    pub slots: usize,
    /// The packet.
    pub buffer: Option<Buffer>,
    /// What is said of it.
    pub claims: Claims,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What it asks for is done.
    Done,
    /// It is lost, and answered so.
    Lost(Loss),
}

/// One queue's sending.
#[derive(Debug)]
pub struct Tx<T: Source> {
    source: T,
    staged: VecDeque<Staged<T::Chain>>,
}

/// What a round did.
#[derive(Debug)]
pub struct Round {
    /// Whether there was something to do.
    pub worked: bool,
    /// Whether the guest wants to be notified.
    pub notify: Option<Notify>,
    /// What the guest did wrong, after all that came before it was served.
    pub fault: Option<PeerFault>,
}

impl<T: Source> Tx<T> {
    /// Serves what comes from `source`.
    #[must_use]
    pub fn new(source: T) -> Self {
        Self { source, staged: VecDeque::with_capacity(BATCH) }
    }

    /// Takes what there is through all stages. The packets are with the port afterwards, whose turn it
    /// is then.
    #[inline]
    pub fn round<P: Port>(&mut self, around: &Around<'_>, port: &mut P, pool: &mut Pool) -> Round {
        let Around { serving, stats, .. } = *around;
        let mut needs = Needs {
            room: port.room(),
            pool,
            credit: &serving.limits.tx,
            groups: &serving.groups,
            stats,
            now: if around.timed { around.clock.now() } else { around.clock.recent() },
        };
        let (mut fault, mut slots) = (None, 0_usize);
        while self.staged.len() < BATCH && slots < SLOTS {
            match self.source.next(&mut needs) {
                Ok(Some(staged)) => {
                    slots = slots.saturating_add(staged.slots);
                    self.staged.push_back(staged);
                }
                Ok(None) => break,
                Err(peer) => {
                    fault = Some(peer);
                    break;
                }
            }
        }
        if self.staged.is_empty() {
            return Round { worked: false, notify: None, fault };
        }
        self.source.copy_in(&mut self.staged, stats);
        for mut staged in self.staged.drain(..) {
            validate::validate(&mut staged, &serving.sources);
            respond::send(&mut staged, port, needs.pool, stats);
            if let Fate::Lost(why) = staged.fate {
                stats.lose(why, 1);
            }
            self.source.answer(staged.chain, staged.fate);
        }
        stats.tx_slots.add(slots as u64);
        stats.tx_owed.set(self.source.owed() as u64);
        Round { worked: true, notify: Some(self.source.publish()), fault }
    }

    /// As [`Source::rearm`].
    ///
    /// # Errors
    ///
    /// The guest broke a rule of the transport.
    pub fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        self.source.rearm()
    }

    /// As [`Source::until`].
    #[must_use]
    pub fn until(&self) -> Option<u64> {
        self.source.until()
    }
}
