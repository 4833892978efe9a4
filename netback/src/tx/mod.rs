//! What the guest sends.
//!
//! ```text
//! receive -> assemble -> copy_in -> validate -> send -> respond
//! ```
//!
//! A round takes up to [`BATCH`] packets, or about a quarter of a ring, through all stages: one copy from the
//! guest's pages, one publication of answers.

pub mod receive;
pub mod assemble;
pub mod copy_in;
pub mod validate;
pub mod respond;

use std::collections::VecDeque;

use hypervisor::PeerFault;
use hypervisor::memory::{Memory, Using};
use ring::wire::netif::gather::Chain;
use ring::{Notify, Recheck};

use crate::buffer::{Buffer, Pool};
use crate::port::Port;
use crate::queue::Around;
use crate::stats::Loss;
use assemble::{Assemble, Needs};
use receive::Receive;

/// Packets that are taken in one round at most.
pub const BATCH: usize = 128;

/// Slots after which no further packet is taken in a round. A few large packets are all that a ring
/// holds: were they all taken before any is answered, guest and backend would wait for each other in turn.
const SLOTS: usize = 64;

/// A chain on its way, with its packet where it has one.
#[derive(Debug)]
pub struct Staged {
    /// What the guest wrote.
    pub chain: Chain,
    /// The packet.
    pub buffer: Option<Buffer>,
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
pub struct Tx<M> {
    receive: Receive<M>,
    assemble: Assemble,
    staged: VecDeque<Staged>,
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

impl<M: Memory> Tx<M> {
    /// Serves what comes on the ring of `receive`.
    #[must_use]
    pub fn new(receive: Receive<M>) -> Self {
        let (assemble, staged) = (Assemble::default(), VecDeque::with_capacity(BATCH));
        Self { receive, assemble, staged }
    }

    /// Takes what there is through all stages. The packets are with the port afterwards, whose turn it
    /// is then.
    #[inline]
    pub fn round<U: Using, P: Port>(
        &mut self,
        around: &Around<'_, U>,
        port: &mut P,
        pool: &mut Pool,
    ) -> Round {
        let serving = around.serving;
        let mut needs = Needs {
            room: port.room(),
            pool,
            credit: &serving.limits.tx,
            groups: &serving.groups,
            stats: around.stats,
            now: if around.timed { around.clock.now() } else { around.clock.recent() },
        };
        let (mut fault, mut slots) = (None, 0_usize);
        while self.staged.len() < BATCH && slots < SLOTS {
            match self.assemble.next(&mut self.receive, &mut needs) {
                Ok(Some(staged)) => {
                    slots = slots.saturating_add(staged.chain.slots());
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
        let (peer, staged) = (self.receive.peer(), self.staged.iter_mut());
        copy_in::copy_in(around.domain, peer, around.kept, staged, slots, around.stats);
        self.receive.note(slots);
        for mut staged in self.staged.drain(..) {
            validate::validate(&mut staged, &serving.sources);
            respond::send(&mut staged, port, needs.pool, around.stats);
            respond::respond(&staged, &mut self.receive, around.stats);
        }
        around.stats.tx_slots.add(slots as u64);
        around.stats.tx_owed.set(self.receive.owed() as u64);
        Round { worked: true, notify: Some(self.receive.publish()), fault }
    }

    /// Before sleeping: asks to be notified of what comes, unless what is there has to wait anyway.
    ///
    /// # Errors
    ///
    /// The guest's index cannot be.
    pub fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        if self.assemble.holds() { Ok(Recheck::Quiet) } else { self.receive.rearm() }
    }

    /// When what waits is worth another try, where time is what it waits for.
    #[must_use]
    pub const fn until(&self) -> Option<u64> {
        self.assemble.until()
    }
}
