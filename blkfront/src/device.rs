//! A disk's life in the store: what is wanted of a device, and how disks are negotiated.
//!
//! The state machine is that of every frontend ([`hypervisor::frontend`]); here is what is a disk's
//! own in it.

use alloc::string::String;
use alloc::vec::Vec;

use hypervisor::Error;
use hypervisor::frontend::{self, Kind, Quarantine, Retire as _};
use hypervisor::xenbus::{Seat, State};

use crate::link::Link;
use crate::negotiate::{self, DiskInfo, MOST_RING_ORDER, Offer, QueueKeys};

pub use hypervisor::frontend::{Ending, Phase, Platform};

/// What we want of a device. The backend's limits lower it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Queues.
    pub queues: u32,
    /// The ring of each, as an order of pages: 0 for 32 requests, 4 for 512.
    pub ring_order: u32,
    /// Requests that each queue holds, on the ring and waiting for it.
    pub depth: u32,
    /// Pages of each queue through which private memory is bounced.
    pub pool_pages: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { queues: 1, ring_order: 2, depth: 256, pool_pages: 1024 }
    }
}

/// One disk's directory in the store, and what stands behind it.
pub type Device<H> = frontend::Device<H, Block>;

/// What a disk's owner has to do now.
pub type Step<H> = frontend::Step<Vec<Link<H>>, DiskInfo>;

/// The kind of device that a disk is.
#[derive(Clone, Debug)]
pub struct Block {
    config: Config,
    /// How many queues were made last.
    queues: usize,
}

impl Block {
    /// Disks as `config` wants them.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self { config, queues: 0 }
    }
}

impl<H: Platform> Kind<H> for Block {
    type Links = Vec<Link<H>>;
    type Offer = Offer;
    type Info = DiskInfo;

    const TOKEN: &'static str = "blkfront";
    const PUBLISHED: State = State::Initialised;

    fn offer(&self, platform: &H, seat: &Seat) -> Result<Offer, Error> {
        Offer::read(platform, seat)
    }

    fn info(
        &self,
        platform: &H,
        seat: &Seat,
        offer: Option<&mut Offer>,
    ) -> Result<DiskInfo, Error> {
        // Linux's says only now whether it keeps grants mapped.
        if let Some(offer) = offer {
            offer.persistent = Offer::read(platform, seat)?.persistent;
        }
        DiskInfo::read(platform, seat)
    }

    fn make(
        &mut self,
        platform: &H,
        seat: &Seat,
        offer: &Offer,
        again: bool,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Result<Vec<Link<H>>, String>, Error> {
        let order = self.config.ring_order.min(offer.ring_order).min(MOST_RING_ORDER);
        let mut count = self.config.queues.max(1).min(offer.queues) as usize;
        if again {
            let queues = self.queues;
            if queues > count {
                let how = alloc::format!("it offers {count} queues where {queues} are in use");
                return Ok(Err(how));
            }
            count = queues;
        }
        let mut links = Vec::with_capacity(count);
        for _ in 0..count {
            let (segments, pages) = (offer.segments(), self.config.pool_pages);
            match Link::new(platform, seat, order, segments, pages, quarantine) {
                Ok(link) => links.push(link),
                Err(error) => {
                    links.retire(platform, quarantine);
                    return Err(error);
                }
            }
        }
        self.queues = count;
        Ok(Ok(links))
    }

    fn publication(&self, links: &Vec<Link<H>>) -> Vec<(String, String)> {
        let queues: Vec<QueueKeys> = links.iter().map(Link::keys).collect();
        negotiate::publication(&queues)
    }

    fn publishes(key: &str) -> bool {
        negotiate::publishes(key)
    }

    fn unlike(was: &DiskInfo, is: &DiskInfo) -> Option<String> {
        if is.sector_size > was.sector_size {
            let (was, is) = (was.sector_size, is.sector_size);
            return Some(alloc::format!("its sectors have {is} bytes where they had {was}"));
        }
        if is.read_only && !was.read_only {
            return Some("it may only be read now".into());
        }
        None
    }
}
