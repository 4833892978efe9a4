//! The handshake of a Xen block device, backend side.
//!
//! What this backend can do stands in its directory before state InitWait ([`Offer`]). The frontend
//! answers with its rings and event channels, whose keys are read and checked ([`read`]) and then
//! taken into use ([`connect`]). What the disk is like stands there before state Connected
//! ([`describe`]).
//!
//! Before: `hypervisor::backend`. After: the queues. Trust: the frontend's directory is attacker-written; each
//! value is bounded where it is read. Source: `io/blkif.h`, `io/protocols.h`, RELEASE-4.17; the order
//! of keys and states is that of its state diagram. Units: `sectors` counts 512 bytes whatever the
//! sector size is.

use std::time::{Duration, Instant};

use hypervisor::backend::{self, Key};
use hypervisor::event::Events;
use hypervisor::memory::{Access, Using};
use hypervisor::store::{Store, StoreError, Transaction};
use hypervisor::xenbus::{Keys, Seat};
use hypervisor::{Error, EventPort, GrantRef, PeerFault};

use crate::connect::{Connection, Features, Layout, Link};

/// The most queues that can be offered, and so be asked for.
pub const MAX_QUEUES: u32 = 64;
/// The most pages of one ring, as a power of two: 16 pages, as Linux's backend has it.
pub const MAX_RING_PAGE_ORDER: u32 = 4;
/// The longest `protocol` that could be one.
const LONGEST_PROTOCOL: usize = 32;
/// Time between two tries to bind a channel.
const BETWEEN: Duration = Duration::from_millis(5);
/// `EINVAL`: the hypervisor's word for a port that is not there or not for us.
const EINVAL: i32 = 22;

/// A compact disc's drive (`VDISK_CDROM`, io/blkif.h).
const VDISK_CDROM: u32 = 1;
/// The medium can be taken out (`VDISK_REMOVABLE`, io/blkif.h).
const VDISK_REMOVABLE: u32 = 2;
/// The disk cannot be written (`VDISK_READONLY`, io/blkif.h).
const VDISK_READONLY: u32 = 4;

/// What this backend can do for any frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Queues, from 1 to [`MAX_QUEUES`].
    pub queues: u32,
    /// Pages of a ring as a power of two, up to [`MAX_RING_PAGE_ORDER`].
    pub ring_page_order: u32,
    /// Whether grants may stay mapped.
    pub persistent: bool,
}

/// What a frontend is told of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size in units of 512 bytes.
    pub sectors: u64,
    /// Bytes in a logical sector.
    pub sector_size: u32,
    /// Bytes in a physical sector.
    pub physical_sector_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether it is to look like a compact disc's drive.
    pub cdrom: bool,
    /// Whether its medium is to look like one that can be taken out.
    pub removable: bool,
    /// What discarding does, if anything.
    pub discard: Option<Discard>,
}

/// How a disk forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Bytes in the smallest piece that can be forgotten.
    pub granularity: u32,
    /// Where the first such piece begins, in bytes.
    pub alignment: u32,
    /// Whether forgetting can be made irreversible.
    pub secure: bool,
}

/// What a frontend wrote for this connection, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// How it lays its requests out.
    pub layout: Layout,
    /// Whether it uses the same grants again and again.
    pub persistent: bool,
    /// Its queues, by number.
    pub queues: Vec<QueueKeys>,
}

/// One queue of a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueKeys {
    /// The ring's pages.
    pub ring: Vec<GrantRef>,
    /// Its end of the event channel.
    pub port: EventPort,
}

impl backend::Offer for Offer {
    fn keys(&self) -> Vec<Key> {
        let order = self.ring_page_order.min(MAX_RING_PAGE_ORDER);
        vec![
            ("multi-queue-max-queues", self.queues.clamp(1, MAX_QUEUES).to_string()),
            ("max-ring-page-order", order.to_string()),
            // The older name for the same, in pages.
            ("max-ring-pages", (1_u32 << order).to_string()),
            ("feature-max-indirect-segments", Features::MAX_INDIRECT_SEGMENTS.to_string()),
            ("feature-persistent", flag(self.persistent)),
            // Linux reads these when connected and others before; they hold from here on.
            ("feature-flush-cache", flag(true)),
            ("feature-barrier", flag(true)),
        ]
    }

    fn after<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<Self, Error> {
        let own = |key: &str| -> Result<Option<u32>, StoreError> {
            match store.read(Transaction::NONE, &format!("{}/{key}", seat.own)) {
                Ok(value) => {
                    Ok(core::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()))
                }
                Err(StoreError::Missing(_)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let mut offer = *self;
        if let Some(queues) = own("multi-queue-max-queues")? {
            offer.queues = self.queues.max(queues.min(MAX_QUEUES));
        }
        if let Some(order) = own("max-ring-page-order")? {
            offer.ring_page_order = self.ring_page_order.max(order.min(MAX_RING_PAGE_ORDER));
        }
        Ok(offer)
    }
}

/// Reads what the frontend wrote for this connection.
///
/// # Errors
///
/// A key is missing or says what cannot be: the frontend's fault, with the key's path, its value
/// and what would have been allowed. Or the store is gone.
pub fn read<S: Store + ?Sized>(
    seat: &Seat,
    store: &S,
    offered: &Offer,
) -> Result<Transport, Error> {
    let keys = seat.peer_keys(store, Transaction::NONE);
    let layout = layout(seat, &keys)?;
    let persistent = offered.persistent && keys.flag("feature-persistent")?;
    let order = order(seat, &keys, offered.ring_page_order)?;
    let many = keys.number("multi-queue-num-queues", 1..=offered.queues)?.unwrap_or(1);
    let mut queues = Vec::new();
    if many == 1 {
        queues.push(queue(&keys, order)?);
    } else {
        for number in 0..many {
            let directory = format!("{}/queue-{number}", seat.opposite);
            let keys = Keys::new(store, Transaction::NONE, &directory, seat.peer);
            queues.push(queue(&keys, order)?);
        }
    }
    Ok(Transport { layout, persistent, queues })
}

/// Maps the frontend's rings and binds its event channels. A channel that a process had which was just killed
/// may be that one's for a moment, until the kernel is done with all that it had under way: so
/// long is waited for it, within `patience`.
///
/// # Errors
///
/// The hypervisor refuses a grant or a port: the frontend's fault. Or the host cannot. Whatever was
/// mapped or bound before that is let go.
pub fn connect<H>(
    seat: &Seat,
    domain: &H,
    transport: &Transport,
    patience: Duration,
) -> Result<Connection<H::Mapping, H::Channel>, Error>
where
    H: Using + Events,
{
    let begun = Instant::now();
    let mut links = Vec::with_capacity(transport.queues.len());
    for queue in &transport.queues {
        let ring = domain.map(seat.peer, &queue.ring, Access::ReadWrite)?;
        let channel = loop {
            match domain.bind(seat.peer, queue.port) {
                Ok(channel) => break channel,
                Err(error) if error.errno != EINVAL => return Err(error.into()),
                Err(_) if begun.elapsed() < patience => std::thread::sleep(BETWEEN),
                Err(_) => {
                    let what = "event channel is refused";
                    return Err(PeerFault::new(seat.peer, what, queue.port).into());
                }
            }
        };
        links.push(Link::new(ring, channel));
    }
    Ok(Connection::new(seat.peer, transport.layout, Features::new(transport.persistent), links))
}

/// What the disk is like, for state Connected. That state again, with another size, announces it.
#[must_use]
pub fn describe(offered: &Offer, disk: &Disk) -> Vec<Key> {
    let discard = if disk.read_only { None } else { disk.discard };
    let mut keys = vec![
        ("feature-flush-cache", flag(true)),
        ("feature-barrier", flag(true)),
        ("feature-discard", flag(discard.is_some())),
    ];
    if let Some(discard) = discard {
        keys.push(("discard-granularity", discard.granularity.to_string()));
        keys.push(("discard-alignment", discard.alignment.to_string()));
        keys.push(("discard-secure", flag(discard.secure)));
    }
    keys.push(("feature-persistent", flag(offered.persistent)));
    keys.push(("sectors", disk.sectors.to_string()));
    keys.push(("sector-size", disk.sector_size.to_string()));
    keys.push(("physical-sector-size", disk.physical_sector_size.to_string()));
    keys.push(("info", info(disk).to_string()));
    keys
}

/// What kind of disk it is, as `info` has it.
fn info(disk: &Disk) -> u32 {
    [(disk.cdrom, VDISK_CDROM), (disk.removable, VDISK_REMOVABLE), (disk.read_only, VDISK_READONLY)]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, bit)| all | bit)
}

fn flag(on: bool) -> String {
    u8::from(on).to_string()
}

/// The frontend's ABI. Without the key it is the x86_32 layout on x86, whose first frontends wrote
/// none, and the native one elsewhere.
fn layout<S: Store + ?Sized>(seat: &Seat, keys: &Keys<'_, S>) -> Result<Layout, Error> {
    let x86 = cfg!(any(target_arch = "x86", target_arch = "x86_64"));
    let named = keys.text("protocol", LONGEST_PROTOCOL)?;
    match named.as_deref() {
        None if x86 => Ok(Layout::X86_32),
        None => Ok(Layout::Native),
        Some("x86_32-abi") if x86 => Ok(Layout::X86_32),
        Some("x86_64-abi") if x86 => Ok(Layout::X86_64),
        Some("arm-abi") if !x86 => Ok(Layout::Native),
        Some(other) => Err(PeerFault::new(seat.peer, "protocol is unknown", other).into()),
    }
}

/// Pages of each ring as a power of two: `ring-page-order`, or `num-ring-pages` where there is only
/// that.
fn order<S: Store + ?Sized>(seat: &Seat, keys: &Keys<'_, S>, most: u32) -> Result<u32, Error> {
    let most = most.min(MAX_RING_PAGE_ORDER);
    if let Some(order) = keys.number("ring-page-order", 0..=most)? {
        return Ok(order);
    }
    match keys.number("num-ring-pages", 1..=1_u32 << most)? {
        None => Ok(0),
        Some(pages) if pages.is_power_of_two() => Ok(pages.trailing_zeros()),
        Some(pages) => {
            Err(PeerFault::new(seat.peer, "ring pages are no power of two", pages).into())
        }
    }
}

/// One queue's ring and channel. A ring of one page is `ring-ref`, but with frontends that write
/// its order even then, `ring-ref0`.
fn queue<S: Store + ?Sized>(keys: &Keys<'_, S>, order: u32) -> Result<QueueKeys, Error> {
    let any = 0..=u32::MAX;
    let mut ring = Vec::new();
    let single = if order == 0 { keys.number("ring-ref", any.clone())? } else { None };
    match single {
        Some(gref) => ring.push(GrantRef(gref)),
        None => {
            for page in 0..1_u32 << order {
                let key = format!("ring-ref{page}");
                let gref = match keys.number(&key, any.clone())? {
                    Some(gref) => gref,
                    // The name that most use says best what is missing.
                    None if order == 0 => keys.needed("ring-ref", any.clone())?,
                    None => keys.needed(&key, any.clone())?,
                };
                ring.push(GrantRef(gref));
            }
        }
    }
    let port = EventPort(keys.needed("event-channel", 1..=u32::MAX)?);
    Ok(QueueKeys { ring, port })
}
