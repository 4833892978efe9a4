//! An interface's life in the store: what is wanted of a device, and how interfaces are negotiated.
//!
//! The state machine is that of every frontend ([`hypervisor::frontend`]); here is what is a network
//! interface's own in it.

use alloc::string::String;
use alloc::vec::Vec;

use hypervisor::Error;
use hypervisor::event::Events;
use hypervisor::frontend::{self, Kind, Quarantine, Retire};
use hypervisor::memory::Granting;
use hypervisor::xenbus::{Seat, State};

use crate::control::{ControlLink, HashSetup};
use crate::link::{Link, Wanted};
use crate::negotiate::{self, NetInfo, Offer, Offloads, QueueKeys, Wishes};
use crate::staging::Staging;

pub use hypervisor::frontend::{Ending, Phase, Platform};

/// What we want of a device. The backend's limits lower it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Queues.
    pub queues: u32,
    /// What we take of what the backend may send.
    pub receive: Offloads,
    /// What may be sent, where the backend takes it.
    pub send: Offloads,
    /// Whether Tx and Rx are to have an event channel each.
    pub split_channels: bool,
    /// The fewest pages kept posted in each queue.
    pub low: u32,
    /// The most.
    pub high: u32,
    /// Whether the backend shall keep multicast packets from us that we do not list.
    pub multicast_control: bool,
    /// How packets are to be spread over the queues.
    pub hash: Option<HashSetup>,
    /// Whether the backend shall keep our pages mapped, as far as it does that. They stay granted for as
    /// long as the connection either way.
    pub staging: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queues: 1,
            receive: Offloads::ALL,
            send: Offloads::ALL,
            split_channels: true,
            low: 64,
            high: 256,
            multicast_control: false,
            hash: None,
            staging: true,
        }
    }
}

/// All links of one connection.
pub struct Connection<H: Granting + Events> {
    /// One for each queue.
    pub queues: Vec<Link<H>>,
    /// The control ring's, where it is wanted and taken.
    pub control: Option<ControlLink<H>>,
    /// Whether the backend keeps a list of multicast addresses for us.
    pub multicast_control: bool,
}

impl<H: Granting + Events> Connection<H> {
    /// What is left of a connection when its users gave their links back.
    #[must_use]
    pub fn of(queues: Vec<Link<H>>, control: Option<ControlLink<H>>) -> Self {
        Self { queues, control, multicast_control: false }
    }
}

impl<H: Granting + Events> Retire<H> for Connection<H> {
    fn retire(self, platform: &H, quarantine: &mut Quarantine<H>) {
        self.queues.retire(platform, quarantine);
        if let Some(control) = self.control {
            control.retire(platform, quarantine);
        }
    }
}

/// One interface's directory in the store, and what stands behind it.
pub type Device<H> = frontend::Device<H, Net>;

/// What an interface's owner has to do now.
pub type Step<H> = frontend::Step<Connection<H>, NetInfo>;

/// The kind of device that an interface is.
#[derive(Clone, Debug)]
pub struct Net {
    config: Config,
    /// How many queues were made last.
    queues: usize,
}

impl Net {
    /// Interfaces as `config` wants them.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self { config, queues: 0 }
    }

    fn links<H: Platform>(
        &self,
        platform: &H,
        seat: &Seat,
        offer: &Offer,
        count: usize,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Connection<H>, Error> {
        let config = &self.config;
        let wanted = Wanted {
            sends: config.send.both(offer.offloads),
            receives: config.receive.consistent(),
            split: config.split_channels && offer.split_channels,
            posted: (config.low, config.high),
        };
        let multicast_control = config.multicast_control && offer.multicast_control;
        let mut made = Connection { queues: Vec::new(), control: None, multicast_control };
        for _ in 0..count {
            match Link::new(platform, seat.peer, &wanted, quarantine) {
                Ok(link) => made.queues.push(link),
                Err(error) => {
                    made.retire(platform, quarantine);
                    return Err(error);
                }
            }
        }
        if (config.hash.is_some() || config.staging) && offer.control_ring {
            let pages = made.queues.iter().filter(|_| config.staging).map(Link::grefs);
            let staging = Staging::new(pages);
            match ControlLink::new(platform, seat.peer, staging, quarantine) {
                Ok(control) => made.control = Some(control),
                Err(error) => {
                    made.retire(platform, quarantine);
                    return Err(error);
                }
            }
        }
        Ok(made)
    }
}

impl<H: Platform> Kind<H> for Net {
    type Links = Connection<H>;
    type Offer = Offer;
    type Info = NetInfo;

    const TOKEN: &'static str = "netfront";
    // Network backends look at the rings when the frontend is connected, and not before.
    const PUBLISHED: State = State::Connected;

    fn offer(&self, platform: &H, seat: &Seat) -> Result<Offer, Error> {
        Offer::read(platform, seat)
    }

    fn info(
        &self,
        platform: &H,
        seat: &Seat,
        _offer: Option<&mut Offer>,
    ) -> Result<NetInfo, Error> {
        NetInfo::read(platform, seat)
    }

    fn make(
        &mut self,
        platform: &H,
        seat: &Seat,
        offer: &Offer,
        again: bool,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Result<Connection<H>, String>, Error> {
        let mut count = self.config.queues.max(1).min(offer.queues) as usize;
        if again {
            let queues = self.queues;
            if queues > count {
                let how = alloc::format!("it offers {count} queues where {queues} are in use");
                return Ok(Err(how));
            }
            count = queues;
        }
        let made = self.links(platform, seat, offer, count, quarantine)?;
        self.queues = count;
        Ok(Ok(made))
    }

    fn publication(&self, links: &Connection<H>) -> Vec<(String, String)> {
        let queues: Vec<QueueKeys> = links.queues.iter().map(Link::keys).collect();
        let wishes = Wishes {
            receive: self.config.receive,
            multicast_control: links.multicast_control,
            control: links.control.as_ref().map(ControlLink::keys),
        };
        negotiate::publication(&queues, &wishes)
    }

    fn publishes(key: &str) -> bool {
        negotiate::publishes(key)
    }

    fn unlike(_was: &NetInfo, _is: &NetInfo) -> Option<String> {
        // Addresses, sizes and carriers change on any network.
        None
    }
}
