//! What a queue has of one connection to one backend: ring, event channel, pages, shadow.
//!
//! Made by the device before it publishes the ring, handed to the queue when the backend is
//! connected, and given back to the device when the connection ends, which alone knows how to
//! take grants back ([`Retire`]).

use alloc::sync::Arc;
use alloc::vec::Vec;

use hypervisor::event::{Channel, Events};
use hypervisor::frontend::{Pool, Quarantine, Retire};
use hypervisor::memory::{Granting, Memory};
use hypervisor::xenbus::Seat;
use hypervisor::{DomId, Error, GrantRef, PAGE_SIZE};
use ring::Front;
use ring::wire::blkif::{Blkif, Segment};

use crate::negotiate::{self, DIRECT_SEGMENTS, QueueKeys};
use crate::shadow::Shadow;

/// One connection's part in a queue.
pub struct Link<H: Granting + Events> {
    pub(crate) peer: DomId,
    pub(crate) ring: Front<Blkif, H::Memory>,
    pub(crate) ring_grefs: Vec<GrantRef>,
    pub(crate) channel: Arc<H::Channel>,
    pub(crate) pool: Pool<H::Memory>,
    pub(crate) shadow: Shadow,
    /// The most segments in a request.
    pub(crate) segments: usize,
    /// Where a request's segments are put together.
    pub(crate) scratch: Vec<Segment>,
}

impl<H: Granting + Events> Link<H> {
    /// Makes a ring of `2^order` pages and a pool of up to `pages` pages for the backend at `seat`,
    /// whose requests have up to `segments` segments.
    pub(crate) fn new(
        platform: &H,
        seat: &Seat,
        order: u32,
        segments: usize,
        pages: usize,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Self, Error> {
        // The ring first: it cannot do with less than it asks for, and the pool takes what is left.
        let (memory, ring_grefs) = negotiate::ring_pages(platform, seat, 1 << order)?;
        let ring = Front::init(memory).map_err(|fault| fault.by(seat.peer))?;
        // A page for data and, where there can be indirect requests, one for their segments: with
        // that little, every request can still be done, piece by piece.
        let least = if segments > DIRECT_SEGMENTS { 2 } else { 1 };
        let pool = match Pool::new(platform, seat.peer, pages, least) {
            Ok(pool) => pool,
            Err(error) => {
                quarantine.retire(platform, ring.into_memory(), ring_grefs);
                return Err(error.into());
            }
        };
        let channel = match Events::allocate(platform, seat.peer) {
            Ok(channel) => Arc::new(channel),
            Err(error) => {
                quarantine.retire(platform, ring.into_memory(), ring_grefs);
                let (memory, grefs) = pool.into_parts();
                quarantine.retire(platform, memory, grefs);
                return Err(error.into());
            }
        };
        let slots = ring.slots() as usize;
        Ok(Self {
            peer: seat.peer,
            shadow: Shadow::new(slots, segments.saturating_add(1)),
            ring,
            ring_grefs,
            channel,
            pool,
            segments,
            scratch: Vec::with_capacity(segments),
        })
    }

    /// How the backend finds it.
    pub(crate) fn keys(&self) -> QueueKeys {
        QueueKeys { ring: self.ring_grefs.clone(), port: self.channel.port() }
    }

    /// Requests that its ring holds.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.ring.slots()
    }

    /// Bytes of the pool through which data is bounced.
    #[must_use]
    pub fn pool_bytes(&self) -> usize {
        self.pool.memory().len()
    }

    /// The most bytes in one request on its ring.
    #[must_use]
    pub fn request_bytes(&self) -> usize {
        self.segments.saturating_mul(PAGE_SIZE)
    }
}

impl<H: Granting + Events> Retire<H> for Link<H> {
    fn retire(self, platform: &H, quarantine: &mut Quarantine<H>) {
        // Whoever still waits on the channel holds a reference of its own.
        drop(self.channel);
        quarantine.retire(platform, self.ring.into_memory(), self.ring_grefs);
        let (memory, grefs) = self.pool.into_parts();
        quarantine.retire(platform, memory, grefs);
    }
}
