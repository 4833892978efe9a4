//! What a virtual machine's driver is told of its disk.
//!
//! Features and configuration are all that a virtio disk has of a handshake; the rest is the session's
//! ([`hypervisor::vhost_user`]). Source: virtio 1.2, 5.2.3 and 5.2.4.

use ring::wire::virtio_blk::{Configuration, ID_BYTES, feature};

use crate::connect::xenbus::{Discard, Disk};

/// Data segments of a request. With header and status, and as one descriptor each, they fit a queue of 128
/// entries: not every driver uses indirect tables.
pub const SEGMENTS: u32 = 126;
/// The most queues that can be offered.
pub const MAX_QUEUES: u16 = 64;
/// The most bytes that are forgotten at once: half of what a length can be, in whole sectors of any size.
const MOST_DISCARDED: u32 = 1 << 31;
/// Bytes in the units of sizes.
const SECTOR: u32 = 512;

/// What a disk of which the rest is `disk` can do.
#[must_use]
pub const fn features(disk: &Disk) -> u64 {
    let mut all =
        feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY | feature::MQ;
    if disk.read_only {
        return all | feature::RO;
    }
    if let Some(Discard { secure, .. }) = disk.discard {
        all |= feature::DISCARD;
        if secure {
            all |= feature::SECURE_ERASE;
        }
    }
    all
}

/// What it is like, with up to `queues` queues.
#[must_use]
pub fn configuration(disk: &Disk, queues: u16) -> Configuration {
    let per_physical = disk.physical_sector_size.checked_div(disk.sector_size).unwrap_or(1).max(1);
    let mut all = Configuration {
        capacity: disk.sectors,
        seg_max: SEGMENTS,
        blk_size: disk.sector_size,
        physical_block_exp: u8::try_from(per_physical.ilog2()).unwrap_or(0),
        num_queues: queues,
        ..Configuration::default()
    };
    if let Some(Discard { granularity, secure, .. }) = disk.discard.filter(|_| !disk.read_only) {
        let most = MOST_DISCARDED.checked_div(SECTOR).unwrap_or(1);
        let best = granularity.max(disk.sector_size).checked_div(SECTOR).unwrap_or(1);
        (all.max_discard_sectors, all.discard_sector_alignment) = (most, best);
        if secure {
            (all.max_secure_erase_sectors, all.secure_erase_sector_alignment) = (most, best);
        }
    }
    all
}

/// A disk's name as drivers are told it: as much of `name` as there is room for.
#[must_use]
pub fn serial(name: &str) -> [u8; ID_BYTES] {
    let mut serial = [0; ID_BYTES];
    for (into, from) in serial.iter_mut().zip(name.bytes()) {
        *into = from;
    }
    serial
}
