//! Requests that name ranges of the disk: several at once, in any pieces, and wrong ones.

use std::sync::Arc;

use blkback::device::{Disks, Policy};
use blkback::engine::Medium;
use blkback::engine::memory::Disk;
use ring::wire::virtio_blk::{Range, feature, kind, status};

use crate::raw::{Driver, Machine};
use crate::served::{SIZE, Served};

const DATA: u64 = 0x10_000;
const ABOUT: u64 = 0x8_000;
const LIST: u64 = 0x9_000;
const FEATURES: u64 = feature::DISCARD | feature::WRITE_ZEROES;

fn range(sector: u64, sectors: u32, flags: u32) -> Range {
    Range { sector, sectors, flags }
}

/// Has `ranges` done by one request, cut into buffers of `cut` bytes.
fn named(driver: &mut Driver<'_>, kind: u32, ranges: &[Range], cut: usize) -> u8 {
    let bytes: Vec<u8> = ranges.iter().flat_map(Range::encode).collect();
    driver.machine.write(LIST, &bytes);
    let pieces = bytes.chunks(cut).enumerate();
    let parts: Vec<_> =
        pieces.map(|(n, piece)| (LIST + (n * cut) as u64, piece.len() as u32, false)).collect();
    driver.request(kind, u64::MAX, &parts, ABOUT)
}

/// Fills the disk's first 64 KiB with 7.
fn fill(driver: &mut Driver<'_>) {
    driver.machine.write(DATA, &[7; 65536]);
    assert_eq!(driver.request(kind::OUT, 0, &[(DATA, 65536, false)], ABOUT), status::OK);
}

/// The sectors of the first 64 KiB that are all zeroes; the others are all 7.
fn zeroed(driver: &mut Driver<'_>) -> Vec<usize> {
    assert_eq!(driver.request(kind::IN, 0, &[(DATA, 65536, true)], ABOUT), status::OK);
    let bytes: [u8; 65536] = driver.machine.read(DATA);
    let sectors = bytes.chunks(512).enumerate();
    sectors
        .filter_map(|(n, sector)| {
            let same = sector.iter().all(|byte| *byte == sector[0]);
            assert!(same && [0, 7].contains(&sector[0]), "sector {n}: {:?}", &sector[..8]);
            (sector[0] == 0).then_some(n)
        })
        .collect()
}

#[test]
fn several_ranges_are_done_by_one_request_however_it_is_cut() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), FEATURES, 1 << 20);
    let mut driver = Driver::new(&machine, 0, 0x1000, 128);
    let ranges = [range(3, 2, 0), range(100, 1, 0), range(8, 8, 0)];
    let expected: Vec<usize> = (3..5).chain(8..16).chain(100..101).collect();
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for cut in [16, 48, 5, 17] {
            fill(&mut driver);
            assert_eq!(named(&mut driver, kind, &ranges, cut), status::OK);
            assert_eq!(zeroed(&mut driver), expected, "kind {kind} in pieces of {cut}");
        }
    }
    // As many as there may be, each with flags of its own.
    fill(&mut driver);
    let many: Vec<Range> = (0..64).map(|n| range(n * 2, 1, n as u32 & 1)).collect();
    assert_eq!(named(&mut driver, kind::WRITE_ZEROES, &many, 1024), status::OK);
    assert_eq!(zeroed(&mut driver), (0..128).step_by(2).collect::<Vec<_>>());
    let total = served.disks.total();
    assert_eq!((total.discards, total.bytes_discarded), (4, 4 * 11 * 512));
    assert_eq!((total.zeroes, total.bytes_zeroed), (5, (4 * 11 + 64) * 512));
    assert_eq!(total.errors(), 0);
}

#[test]
fn what_is_wrong_with_a_range_is_refused_by_name_and_nothing_is_done() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), FEATURES, 1 << 20);
    let mut driver = Driver::new(&machine, 0, 0x1000, 128);
    fill(&mut driver);
    let good = range(0, 8, 0);
    let end = SIZE / 512;
    for (kind, second, answer, name) in [
        (kind::DISCARD, range(8, 8, 1), status::UNSUPP, "range_flags"),
        (kind::DISCARD, range(8, 8, 2), status::UNSUPP, "range_flags"),
        (kind::WRITE_ZEROES, range(8, 8, 2), status::UNSUPP, "range_flags"),
        (kind::WRITE_ZEROES, range(8, 8, 1 << 31), status::UNSUPP, "range_flags"),
        (kind::DISCARD, range(end, 1, 0), status::IOERR, "past_end"),
        (kind::WRITE_ZEROES, range(u64::MAX, 1, 0), status::IOERR, "past_end"),
        (kind::DISCARD, range(0, (1 << 22) + 1, 0), status::IOERR, "range_too_long"),
        (kind::WRITE_ZEROES, range(0, (1 << 18) + 1, 0), status::IOERR, "range_too_long"),
        (kind::DISCARD, range(0, 0, 0), status::IOERR, "empty"),
        // Not agreed on.
        (kind::SECURE_ERASE, range(8, 8, 0), status::UNSUPP, "unknown_operation"),
    ] {
        let before = served.disks.total().refused.get(name).copied().unwrap_or(0);
        assert_eq!(named(&mut driver, kind, &[good, second], 16), answer, "{kind}: {second:?}");
        let after = served.disks.total().refused.get(name).copied();
        assert_eq!(after, Some(before + 1), "{kind}: {second:?}");
    }
    let many = vec![good; 65];
    assert_eq!(named(&mut driver, kind::DISCARD, &many, 2048), status::IOERR);
    machine.write(LIST, &good.encode());
    for len in [15, 17] {
        let part = [(LIST, len, false)];
        assert_eq!(driver.request(kind::DISCARD, 0, &part, ABOUT), status::IOERR);
    }
    let both = [(LIST, 16, false), (LIST, 16, true)];
    assert_eq!(driver.request(kind::DISCARD, 0, &both, ABOUT), status::IOERR);
    assert_eq!(driver.request(kind::WRITE_ZEROES, 0, &[], ABOUT), status::IOERR);
    assert_eq!(zeroed(&mut driver), Vec::<usize>::new(), "a range that was refused was touched");
    let refused = served.disks.total().refused;
    assert_eq!((refused["segment_count"], refused["wrong_direction"]), (4, 1));
}

#[test]
fn what_a_driver_has_not_agreed_on_there_is_not() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), 0, 1 << 20);
    let mut driver = Driver::new(&machine, 0, 0x1000, 128);
    for kind in [kind::DISCARD, kind::WRITE_ZEROES, kind::SECURE_ERASE] {
        assert_eq!(named(&mut driver, kind, &[range(0, 8, 0)], 16), status::UNSUPP);
    }
    assert_eq!(served.disks.total().refused["unknown_operation"], 3);
}

#[test]
fn each_range_pays_where_operations_are_limited() {
    let medium = Medium::Memory(Arc::new(Disk::new(SIZE, 512).unwrap()));
    let mut policy = Policy::default();
    policy.iops = Some(20);
    let served = Served::over(Disks::new(medium, None, &policy));
    let machine = Machine::new(&served.path(), FEATURES, 1 << 20);
    let mut driver = Driver::new(&machine, 0, 0x1000, 128);
    let begun = std::time::Instant::now();
    let ranges: Vec<Range> = (0..10).map(|n| range(n * 8, 8, 0)).collect();
    for kind in [kind::DISCARD, kind::WRITE_ZEROES, kind::DISCARD] {
        assert_eq!(named(&mut driver, kind, &ranges, 160), status::OK);
    }
    // The third waits until the 20 operations of the first two are paid for, less the burst of a tenth of a second.
    assert!(begun.elapsed().as_millis() >= 890, "{:?}", begun.elapsed());
}
