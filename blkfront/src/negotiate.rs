//! What the two ends agree on, and the keys in which they say so.
//!
//! Source: `io/blkif.h` and `io/protocols.h`, RELEASE-4.17. The backend offers before its state is
//! InitWait; we choose and publish with Initialised; the backend describes the disk before its state
//! is Connected. Everything is the backend's word and is checked for range here, in the same way
//! whether it is heard for the first time or after a reconnection (advisories 405, 465). `sectors`
//! is in units of 512 bytes whatever the sector size is; sizes here are in bytes.
//!
//! The toolstack says in our own directory, by `trusted`, whether we may trust the backend. We never do
//! of ourselves: data is bounced through zeroed pages whatever it says (advisory 403). It decides
//! whether a caller may lend the backend memory of its own ([`arena`](crate::arena)).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypervisor::memory::Granting;
use hypervisor::store::{Store, Transaction};
use hypervisor::xenbus::Seat;
use hypervisor::{Error, EventPort, GrantRef, PAGE_SIZE, PeerFault};
use ring::wire::blkif::Abi;

/// The unit of `sectors` and of every sector number on the ring, in bytes.
pub const SECTOR: u64 = 512;
/// Segments of a request that has them in its own slot (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const DIRECT_SEGMENTS: usize = 11;
/// Segments that we put in one indirect request at most: 1 MiB of whole pages, half of what one
/// page of descriptors holds.
pub const MOST_SEGMENTS: usize = 256;
/// The largest ring that we make, as an order of pages: sixteen.
pub const MOST_RING_ORDER: u32 = 4;

/// `VDISK_CDROM`: it is one.
const VDISK_CDROM: u32 = 1;
/// `VDISK_REMOVABLE`: its medium is.
const VDISK_REMOVABLE: u32 = 2;
/// `VDISK_READONLY`: it may only be read.
const VDISK_READONLY: u32 = 4;

/// What a backend offers before there is a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Offer {
    /// The most queues (`multi-queue-max-queues`).
    pub queues: u32,
    /// The largest ring (`max-ring-page-order`, or `max-ring-pages`).
    pub ring_order: u32,
    /// The most segments in an indirect request, 0 for none (`feature-max-indirect-segments`).
    pub indirect_segments: u32,
    /// Whether it keeps grants mapped (`feature-persistent`).
    pub persistent: bool,
}

impl Offer {
    /// Reads what the backend at `seat` offers.
    ///
    /// # Errors
    ///
    /// A value is out of range, or the store is gone.
    pub fn read<S: Store + ?Sized>(store: &S, seat: &Seat) -> Result<Self, Error> {
        let keys = seat.peer_keys(store, Transaction::NONE);
        let ring_order = match keys.number("max-ring-page-order", 0..=31)? {
            Some(order) => order,
            None => keys.number("max-ring-pages", 1..=u32::MAX)?.map_or(0, u32::ilog2),
        };
        Ok(Self {
            queues: keys.number("multi-queue-max-queues", 1..=u32::MAX)?.unwrap_or(1),
            ring_order,
            indirect_segments: keys
                .number("feature-max-indirect-segments", 0..=u32::MAX)?
                .unwrap_or(0),
            persistent: keys.flag("feature-persistent")?,
        })
    }

    /// How many segments a request of ours may have.
    #[must_use]
    pub fn segments(&self) -> usize {
        let offered = usize::try_from(self.indirect_segments).unwrap_or(usize::MAX);
        offered.clamp(DIRECT_SEGMENTS, MOST_SEGMENTS)
    }
}

/// What a backend can discard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Discard {
    /// Only multiples of this many bytes...
    pub granularity: u32,
    /// ... from this byte on are discarded.
    pub alignment: u32,
    /// Whether it can make every copy unrecoverable.
    pub secure: bool,
}

/// What a connected disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DiskInfo {
    /// Bytes on it.
    pub size: u64,
    /// Bytes in a sector: the unit of every offset and length.
    pub sector_size: u32,
    /// Bytes that the medium writes at once, a multiple of the sector size.
    pub physical_sector_size: u32,
    /// Whether it may only be read.
    pub read_only: bool,
    /// Whether it is a CD-ROM drive.
    pub cdrom: bool,
    /// Whether its medium is removable.
    pub removable: bool,
    /// Whether flushes reach it. Where not, every write is on stable storage when it completes, as
    /// far as the backend says.
    pub flush: bool,
    /// What it can discard, if anything.
    pub discard: Option<Discard>,
}

impl DiskInfo {
    /// Reads what the connected backend at `seat` serves.
    ///
    /// # Errors
    ///
    /// A value is missing or out of range, or the store is gone.
    pub fn read<S: Store + ?Sized>(store: &S, seat: &Seat) -> Result<Self, Error> {
        let keys = seat.peer_keys(store, Transaction::NONE);
        let wrong = |what: &'static str, value: u64| PeerFault::new(seat.peer, what, value);
        let largest = PAGE_SIZE as u32;
        let sector_size = keys.number("sector-size", 512..=largest)?.unwrap_or(512);
        if !sector_size.is_power_of_two() {
            return Err(wrong("sector-size is no power of two", sector_size.into()).into());
        }
        let physical = keys.number("physical-sector-size", sector_size..=1 << 30)?;
        let physical_sector_size = physical.unwrap_or(sector_size);
        if !physical_sector_size.is_multiple_of(sector_size) {
            let value = physical_sector_size.into();
            return Err(wrong("physical-sector-size is no multiple of sector-size", value).into());
        }
        // Every byte offset has to fit a signed 64-bit number, as file offsets do.
        let sectors = keys.needed("sectors", 0..=(i64::MAX as u64 / SECTOR))?;
        let size = sectors.saturating_mul(SECTOR);
        if !size.is_multiple_of(sector_size.into()) {
            return Err(wrong("sectors are no whole number of sector-size", sectors).into());
        }
        let bits = keys.number("info", 0..=u32::MAX)?.unwrap_or(0);
        let discard = if keys.flag("feature-discard")? {
            let granularity = keys.number("discard-granularity", 1..=u32::MAX)?;
            let granularity = granularity.unwrap_or(sector_size);
            if !granularity.is_multiple_of(sector_size) {
                let what = "discard-granularity is no multiple of sector-size";
                return Err(wrong(what, granularity.into()).into());
            }
            let alignment = keys.number("discard-alignment", 0..=u32::MAX)?.unwrap_or(0);
            if !alignment.is_multiple_of(sector_size) {
                let what = "discard-alignment is no multiple of sector-size";
                return Err(wrong(what, alignment.into()).into());
            }
            Some(Discard { granularity, alignment, secure: keys.flag("discard-secure")? })
        } else {
            None
        };
        Ok(Self {
            size,
            sector_size,
            physical_sector_size,
            read_only: bits & VDISK_READONLY != 0,
            cdrom: bits & VDISK_CDROM != 0,
            removable: bits & VDISK_REMOVABLE != 0,
            flush: keys.flag("feature-flush-cache")?,
            discard,
        })
    }
}

/// How the backend finds one queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueKeys {
    pub(crate) ring: Vec<GrantRef>,
    pub(crate) port: EventPort,
}

/// The keys that publish `queues`, all of them with rings of the same size.
pub(crate) fn publication(queues: &[QueueKeys]) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    let mut say = |key: String, value: String| keys.push((key, value));
    say("protocol".into(), Abi::NATIVE_KEY.into());
    say("feature-persistent".into(), "1".into());
    let pages = queues.first().map_or(1, |queue| queue.ring.len()).max(1);
    if pages > 1 {
        // Some backends look for `ring-ref0` as soon as the order is there at all.
        say("ring-page-order".into(), pages.ilog2().to_string());
        say("num-ring-pages".into(), pages.to_string());
    }
    if queues.len() > 1 {
        say("multi-queue-num-queues".into(), queues.len().to_string());
    }
    for (number, queue) in queues.iter().enumerate() {
        let directory = if queues.len() > 1 { format!("queue-{number}/") } else { String::new() };
        match queue.ring.as_slice() {
            [only] => say(format!("{directory}ring-ref"), only.to_string()),
            several => {
                for (page, gref) in several.iter().enumerate() {
                    say(format!("{directory}ring-ref{page}"), gref.to_string());
                }
            }
        }
        say(format!("{directory}event-channel"), queue.port.to_string());
    }
    keys
}

/// Whether `key` is one that [`publication`] may have written, of this connection or an earlier one
/// with other parameters.
pub(crate) fn publishes(key: &str) -> bool {
    ["ring-ref", "queue-"].iter().any(|start| key.starts_with(start))
        || matches!(
            key,
            "protocol"
                | "event-channel"
                | "feature-persistent"
                | "ring-page-order"
                | "num-ring-pages"
                | "multi-queue-num-queues"
        )
}

/// Offers `pages` pages for a ring to the backend at `seat`, cleared.
pub(crate) fn ring_pages<G: Granting>(
    granting: &G,
    seat: &Seat,
    pages: usize,
) -> Result<(G::Memory, Vec<GrantRef>), Error> {
    let memory = granting.allocate(pages, seat.peer)?;
    let mut grefs = alloc::vec![GrantRef(0); pages];
    granting.grant(&memory, 0, hypervisor::memory::Access::ReadWrite, &mut grefs)?;
    Ok((memory, grefs))
}
