//! The ring on which a Xen frontend sends.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use hypervisor::PeerFault;
use hypervisor::memory::Using;
use ring::wire::netif::gather::Chain;
use ring::{Notify, Recheck};

use super::admit::Needs;
use super::assemble::Assemble;
use super::copy_in::copy_in;
use super::receive::Receive;
use super::respond::respond;
use super::{Fate, Source, Staged};
use crate::queue::Serving;
use crate::stats::Stats;

/// What a Xen frontend sends.
#[derive(Debug)]
pub struct Sending<U: Using> {
    receive: Receive<U::Mapping>,
    assemble: Assemble,
    domain: Rc<U>,
    /// Knows which of the guest's grants queue `number` keeps mapped.
    serving: Arc<Serving>,
    number: u16,
}

impl<U: Using> Sending<U> {
    /// What comes on the ring of `receive`, to us as `domain`.
    #[must_use]
    pub fn new(
        receive: Receive<U::Mapping>,
        domain: Rc<U>,
        serving: Arc<Serving>,
        number: u16,
    ) -> Self {
        Self { receive, assemble: Assemble::default(), domain, serving, number }
    }
}

impl<U: Using> Source for Sending<U> {
    type Chain = Chain;

    #[inline]
    fn next(&mut self, needs: &mut Needs<'_>) -> Result<Option<Staged<Chain>>, PeerFault> {
        self.assemble.next(&mut self.receive, needs)
    }

    #[inline]
    fn copy_in(&mut self, staged: &mut VecDeque<Staged<Chain>>, stats: &Stats) {
        let slots = staged.iter().map(|each| each.slots).sum();
        let (peer, kept) = (self.receive.peer(), self.serving.kept(self.number));
        copy_in(&*self.domain, peer, kept, staged.iter_mut(), slots, stats);
        self.receive.note(slots);
    }

    #[inline]
    fn answer(&mut self, chain: Chain, fate: Fate) {
        respond(&chain, fate, &mut self.receive);
    }

    #[inline]
    fn publish(&mut self) -> Notify {
        self.receive.publish()
    }

    fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        if self.assemble.holds() { Ok(Recheck::Quiet) } else { self.receive.rearm() }
    }

    fn until(&self) -> Option<u64> {
        self.assemble.until()
    }

    fn owed(&self) -> usize {
        self.receive.owed()
    }
}
