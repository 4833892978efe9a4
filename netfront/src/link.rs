//! What a queue has of one connection to one backend: rings, event channels, pages, shadows.
//!
//! Made by the device before it publishes the rings, handed to the queue when the backend is
//! connected, and given back to the device when the connection ends, which alone knows how to
//! take grants back.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hypervisor::event::{Channel, Events};
use hypervisor::frontend::{Pool, Quarantine, Retire};
use hypervisor::memory::{Access, Granting, Memory};
use hypervisor::{DomId, Error, GrantRef};
use ring::wire::netif::collect::Collect;
use ring::wire::netif::{Rx, SLOTS_MIN, Tx};
use ring::{Front, Protocol, RingIndex};

use crate::negotiate::{Offloads, QueueKeys};
use crate::posted::Posted;
use crate::refill::Refill;
use crate::shadow::Shadow;

/// Pages for what is sent: the ring's slots, and as many again as one packet has for one that is
/// being made meanwhile.
const TX_PAGES: usize = 256 + SLOTS_MIN;

/// How a connection's queues are to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// What may be sent to the backend.
    pub(crate) sends: Offloads,
    /// What is received from it.
    pub(crate) receives: Offloads,
    /// Whether Tx and Rx have an event channel each.
    pub(crate) split: bool,
    /// The fewest and the most pages kept posted.
    pub(crate) posted: (u32, u32),
}

/// One ring, with the pages that travel on it.
pub(crate) struct Side<P: Protocol, H: Granting + Events> {
    pub(crate) ring: Front<P, H::Memory>,
    grefs: Vec<GrantRef>,
    pub(crate) channel: Arc<H::Channel>,
    pub(crate) pool: Pool<H::Memory>,
}

impl<P: Protocol, H: Granting + Events> Side<P, H> {
    /// A ring for `peer` and `pages` pages, or down to `least` where there are fewer. Its channel is
    /// `shared`, where there is one.
    fn new(
        platform: &H,
        peer: DomId,
        pages: usize,
        least: usize,
        shared: Option<&Arc<H::Channel>>,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Self, Error> {
        // The ring first: it cannot do with less than it asks for, and the pool takes what is left.
        let (ring, grefs) = granted_ring(platform, peer)?;
        let pool = match Pool::new(platform, peer, pages, least) {
            Ok(pool) => pool,
            Err(error) => {
                quarantine.retire(platform, ring.into_memory(), grefs);
                return Err(error.into());
            }
        };
        let channel = match shared {
            Some(channel) => Ok(Arc::clone(channel)),
            None => Events::allocate(platform, peer).map(Arc::new),
        };
        match channel {
            Ok(channel) => Ok(Self { ring, grefs, channel, pool }),
            Err(error) => {
                quarantine.retire(platform, ring.into_memory(), grefs);
                let (memory, grefs) = pool.into_parts();
                quarantine.retire(platform, memory, grefs);
                Err(error.into())
            }
        }
    }

    fn gref(&self) -> GrantRef {
        self.grefs.first().copied().unwrap_or(GrantRef(0))
    }
}

impl<P: Protocol, H: Granting + Events> Retire<H> for Side<P, H> {
    fn retire(self, platform: &H, quarantine: &mut Quarantine<H>) {
        // Whoever still waits on the channel holds a reference of its own.
        drop(self.channel);
        quarantine.retire(platform, self.ring.into_memory(), self.grefs);
        let (memory, grefs) = self.pool.into_parts();
        quarantine.retire(platform, memory, grefs);
    }
}

/// A ring in memory of `G`.
pub(crate) type RingOf<P, G> = Front<P, <G as Granting>::Memory>;

/// A ring of one page, granted to `peer`.
pub(crate) fn granted_ring<P: Protocol, G: Granting>(
    platform: &G,
    peer: DomId,
) -> Result<(RingOf<P, G>, Vec<GrantRef>), Error> {
    let memory = platform.allocate(1, peer)?;
    // Written before it is granted: nothing of it is there to be seen half made.
    let ring = Front::init(memory).map_err(|fault| fault.by(peer))?;
    let mut grefs = alloc::vec![GrantRef(0)];
    platform.grant(ring.memory(), 0, Access::ReadWrite, &mut grefs)?;
    Ok((ring, grefs))
}

/// One connection's part in a queue.
pub struct Link<H: Granting + Events> {
    pub(crate) peer: DomId,
    /// What may be sent to the backend.
    pub(crate) sends: Offloads,
    /// What the backend may send to us.
    pub(crate) receives: Offloads,
    pub(crate) tx: Side<Tx, H>,
    pub(crate) shadow: Shadow,
    pub(crate) rx: Side<Rx, H>,
    pub(crate) posted: Posted,
    pub(crate) refill: Refill,
    pub(crate) collect: Collect,
    /// Where the chain that is being followed began.
    pub(crate) chain: Option<RingIndex>,
}

impl<H: Granting + Events> Link<H> {
    pub(crate) fn new(
        platform: &H,
        peer: DomId,
        wanted: &Wanted,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Self, Error> {
        // With that little, one packet of the largest kind at a time can still be moved: its pieces,
        // and the pages that lie under extras.
        let least = if wanted.sends.sg { SLOTS_MIN } else { 1 };
        let tx = Side::new(platform, peer, TX_PAGES, least, None, quarantine)?;
        let shared = (!wanted.split).then_some(&tx.channel);
        let least = if wanted.receives.sg { SLOTS_MIN.saturating_add(3) } else { 2 };
        let (low, high) = wanted.posted;
        let pages = (high as usize).max(least);
        let rx = match Side::new(platform, peer, pages, least, shared, quarantine) {
            Ok(rx) => rx,
            Err(error) => {
                tx.retire(platform, quarantine);
                return Err(error);
            }
        };
        let least = u32::try_from(least).unwrap_or(u32::MAX);
        Ok(Self {
            peer,
            sends: wanted.sends,
            receives: wanted.receives,
            tx,
            shadow: Shadow::new(),
            refill: Refill::new(low.max(least), high.max(least).min(rx.ring.slots())),
            rx,
            posted: Posted::new(),
            collect: Collect::new(),
            chain: None,
        })
    }

    /// How the backend finds it.
    pub(crate) fn keys(&self) -> QueueKeys {
        QueueKeys {
            tx_ring: self.tx.gref(),
            rx_ring: self.rx.gref(),
            tx_port: self.tx.channel.port(),
            rx_port: self.rx.channel.port(),
        }
    }

    /// The pages through which packets are bounced, either way.
    pub(crate) fn grefs(&self) -> Vec<GrantRef> {
        [self.tx.pool.grefs(), self.rx.pool.grefs()].concat()
    }

    /// What may be sent to the backend.
    #[must_use]
    pub fn sends(&self) -> Offloads {
        self.sends
    }

    /// Bytes of pages through which packets are bounced, either way.
    #[must_use]
    pub fn pool_bytes(&self) -> usize {
        self.tx.pool.memory().len().saturating_add(self.rx.pool.memory().len())
    }
}

impl<H: Granting + Events> Retire<H> for Link<H> {
    fn retire(self, platform: &H, quarantine: &mut Quarantine<H>) {
        self.tx.retire(platform, quarantine);
        self.rx.retire(platform, quarantine);
    }
}
