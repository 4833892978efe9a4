//! What a virtual machine's driver is told of its disk.
//!
//! Features and configuration are all that a virtio disk has of a handshake; the rest is the session's
//! ([`hypervisor::vhost_user`]). Source: virtio 1.2, 5.2.3 and 5.2.4.

use ring::wire::virtio_blk::{Configuration, ID_BYTES, feature};

use crate::connect::xenbus::{Discard, Disk};
use crate::image::Hints;

/// Data segments of a request. With header and status, and as one descriptor each, they fit a queue of 128
/// entries: not every driver uses indirect tables.
pub const SEGMENTS: u32 = 126;
/// The most queues that can be offered.
pub const MAX_QUEUES: u16 = 64;
/// The most ranges that one request may discard or zero.
pub const RANGES: u32 = 64;
/// The most bytes of a range to discard: half of what a length can be, in whole sectors of any size.
const MOST_DISCARDED: u32 = 1 << 31;
/// The most bytes of a range to zero: where zeroes have to be written, a request is to end in seconds.
const MOST_ZEROED: u32 = 1 << 27;
/// Bytes in the units of sizes.
const SECTOR: u32 = 512;

/// The most bytes of a range to discard, or else to zero.
#[must_use]
pub const fn longest_range(discard: bool) -> u64 {
    if discard { MOST_DISCARDED as u64 } else { MOST_ZEROED as u64 }
}

/// What a disk of which the rest is `disk` can do. `VIRTIO_BLK_F_SIZE_MAX` is not offered, since nothing bounds one
/// segment, and a driver that was told of a bound would cut its transfers by it.
#[must_use]
pub const fn features(disk: &Disk) -> u64 {
    let mut all =
        feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY | feature::MQ;
    if disk.read_only {
        return all | feature::RO;
    }
    all |= feature::WRITE_ZEROES;
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
pub fn configuration(disk: &Disk, hints: Hints, queues: u16) -> Configuration {
    let in_sectors = |bytes: u32| bytes.checked_div(disk.sector_size).unwrap_or(0);
    let per_physical = in_sectors(disk.physical_sector_size).max(1);
    let mut all = Configuration {
        capacity: disk.sectors,
        seg_max: SEGMENTS,
        blk_size: disk.sector_size,
        physical_block_exp: u8::try_from(per_physical.ilog2()).unwrap_or(0),
        alignment_offset: u8::try_from(in_sectors(hints.alignment)).unwrap_or(0),
        // No least transfer is one of a sector.
        min_io_size: u16::try_from(in_sectors(hints.least).max(1)).unwrap_or(u16::MAX),
        opt_io_size: in_sectors(hints.best),
        num_queues: queues,
        ..Configuration::default()
    };
    if disk.read_only {
        return all;
    }
    let sectors = |bytes: u32| bytes.checked_div(SECTOR).unwrap_or(1);
    (all.max_write_zeroes_sectors, all.max_write_zeroes_seg) = (sectors(MOST_ZEROED), RANGES);
    if let Some(Discard { granularity, secure, .. }) = disk.discard {
        let (most, best) = (sectors(MOST_DISCARDED), sectors(granularity.max(disk.sector_size)));
        all.write_zeroes_may_unmap = true;
        (all.max_discard_sectors, all.max_discard_seg) = (most, RANGES);
        all.discard_sector_alignment = best;
        if secure {
            (all.max_secure_erase_sectors, all.max_secure_erase_seg) = (most, RANGES);
            all.secure_erase_sector_alignment = best;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk {
            sectors: 8 << 20,
            sector_size: 512,
            physical_sector_size: 4096,
            read_only: false,
            cdrom: false,
            removable: false,
            discard: Some(Discard { granularity: 65536, alignment: 0, secure: false }),
        }
    }

    #[test]
    fn a_disk_is_told_as_it_is() {
        let hints = Hints { alignment: 1024, least: 4096, best: 1 << 20 };
        let told = configuration(&disk(), hints, 3);
        assert_eq!((told.capacity, told.blk_size, told.num_queues), (8 << 20, 512, 3));
        assert_eq!((told.physical_block_exp, told.alignment_offset), (3, 2));
        assert_eq!((told.min_io_size, told.opt_io_size), (8, 2048));
        assert_eq!((told.max_discard_sectors, told.max_discard_seg), (1 << 22, RANGES));
        assert_eq!(told.discard_sector_alignment, 128);
        assert_eq!((told.max_write_zeroes_sectors, told.max_write_zeroes_seg), (1 << 18, RANGES));
        assert!(told.write_zeroes_may_unmap);
        assert_eq!((told.max_secure_erase_sectors, told.max_secure_erase_seg), (0, 0));
        // In sectors of the disk, and never none for the least.
        let large = Disk { sector_size: 4096, ..disk() };
        let told = configuration(&large, Hints { best: 1 << 20, ..Hints::default() }, 1);
        assert_eq!((told.physical_block_exp, told.alignment_offset), (0, 0));
        assert_eq!((told.min_io_size, told.opt_io_size), (1, 256));
    }

    #[test]
    fn what_is_offered_has_its_fields_and_nothing_else_has() {
        let secure = Some(Discard { granularity: 4096, alignment: 0, secure: true });
        for (read_only, discard) in
            [(false, None), (false, disk().discard), (false, secure), (true, secure)]
        {
            let disk = Disk { read_only, discard, ..disk() };
            let (has, told) = (features(&disk), configuration(&disk, Hints::default(), 1));
            let offered = |feature: u64| has & feature != 0;
            assert_eq!(offered(feature::RO), read_only);
            assert_eq!(offered(feature::DISCARD), told.max_discard_sectors > 0);
            assert_eq!(offered(feature::DISCARD), told.write_zeroes_may_unmap);
            assert_eq!(offered(feature::WRITE_ZEROES), told.max_write_zeroes_sectors > 0);
            assert_eq!(offered(feature::SECURE_ERASE), told.max_secure_erase_sectors > 0);
            assert_eq!(offered(feature::WRITE_ZEROES), !read_only);
        }
    }
}
