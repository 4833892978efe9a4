//! The log of what was written, for a machine's migration: exactly the pages that were, and none else.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use ring::wire::virtio_blk::{kind, status};

use crate::raw::{BASIC, Driver, Machine, memory, request, words};
use crate::served::{PATIENCE, Served};

const RAM: u64 = 4 << 20;
const ABOUT: u64 = 0x8_000;
const QUEUE: u64 = 0x1_000;
/// `VHOST_F_LOG_ALL`.
const LOG_ALL: u64 = 1 << 26;
const EVENT_INDEX: u64 = 1 << 29;

/// The pages that are marked.
fn look(log: &File, offset: u64) -> BTreeSet<u64> {
    let mut bits = vec![0; (RAM / 4096 / 8) as usize];
    log.read_exact_at(&mut bits, offset).unwrap();
    let pages = 0..RAM / 4096;
    pages.filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 == 1).collect()
}

/// The pages that are marked, after which none is. A mark that comes in between is lost, as it is to no monitor.
fn marked(log: &File, offset: u64) -> BTreeSet<u64> {
    let pages = look(log, offset);
    log.write_all_at(&vec![0; (RAM / 4096 / 8) as usize], offset).unwrap();
    pages
}

fn pages<const N: usize>(all: [u64; N]) -> BTreeSet<u64> {
    all.into_iter().collect()
}

/// Waits until exactly these pages are marked: what is written when the queue goes to sleep comes later than the
/// answer.
fn until_marked(log: &File, expected: &BTreeSet<u64>) {
    let begun = Instant::now();
    loop {
        let seen = look(log, 0);
        if seen == *expected {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "marked: {seen:?}, and not {expected:?}");
        std::thread::yield_now();
    }
}

/// Begins to note, in a file of which the bits are behind `offset` bytes.
fn begin(machine: &Machine, features: u64, offset: u64) -> File {
    let log = memory(offset + RAM / 4096 / 8);
    machine.tell(request::SET_LOG_BASE, &words(&[RAM / 4096 / 8, offset]), &[log.as_fd()]);
    assert_eq!(machine.answer(request::SET_LOG_BASE), [0; 8]);
    machine.done(request::SET_FEATURES, &words(&[features | BASIC | LOG_ALL]), &[]);
    log
}

#[test]
fn exactly_the_pages_that_are_written_are_marked() {
    for features in [0, EVENT_INDEX] {
        let served = Served::new();
        let machine = Machine::new(&served.path(), features, RAM);
        // Its used ring begins at a page of its own.
        let mut driver = Driver::new(&machine, 0, QUEUE, 64);
        assert_eq!(driver.request(kind::FLUSH, 0, &[], ABOUT), status::OK);
        let log = begin(&machine, features, 8192);
        // While nothing is asked for of the used ring: status, and what is read.
        let status_page = ABOUT / 4096;
        assert_eq!(driver.request(kind::OUT, 0, &[(0x10_000, 8192, false)], ABOUT), status::OK);
        assert_eq!(marked(&log, 8192), pages([status_page]), "what is only read by the device");
        let parts = [(0x20_000, 512, true), (0x31_e00, 1024, true), (0x50_000, 6656, true)];
        assert_eq!(driver.request(kind::IN, 0, &parts, ABOUT), status::OK);
        let read = pages([status_page, 0x20, 0x31, 0x32, 0x50, 0x51]);
        assert_eq!(marked(&log, 8192), read, "what is read, and no page more");
        assert_eq!(driver.request(kind::GET_ID, 0, &[(0x60_ff8, 20, true)], ABOUT), status::OK);
        assert_eq!(marked(&log, 8192), pages([status_page, 0x60, 0x61]), "the serial number");
        // Refused, so that nothing is written but that.
        let beyond = driver.request(kind::IN, u64::MAX, &parts, ABOUT);
        assert_eq!(beyond, status::IOERR);
        assert_eq!(marked(&log, 8192), pages([status_page]), "a request that was refused");
        // No longer wanted.
        machine.done(request::SET_FEATURES, &words(&[features | BASIC]), &[]);
        assert_eq!(driver.request(kind::IN, 0, &parts, ABOUT), status::OK);
        assert_eq!(marked(&log, 8192), pages([]), "without LOG_ALL");
    }
}

#[test]
fn the_used_ring_is_marked_where_that_is_asked_for() {
    for features in [0, EVENT_INDEX] {
        let served = Served::new();
        let machine = Machine::new(&served.path(), features, RAM);
        // 1024 entries: the used ring has two pages and some more, of which the last has the event alone.
        let mut driver = Driver::spread(&machine, 0, [0x100_000, 0x110_000, 0x120_000], 1024);
        let log = begin(&machine, features, 0);
        let base = machine.ask(request::GET_VRING_BASE, &[0; 8]);
        assert_eq!(base, [0; 8]);
        driver.start(0, Some(0x120_000));
        let (first, status_page) = (0x120, ABOUT / 4096);
        let event = pages(if features == 0 { [first] } else { [first + 2] });
        marked(&log, 0);
        // The first entries lie in the first page, with the index.
        assert_eq!(driver.request(kind::FLUSH, 0, &[], ABOUT), status::OK);
        let expected: BTreeSet<u64> = &pages([status_page, first]) | &event;
        until_marked(&log, &expected);
        // Entry 511 is the first that lies in the second one: 4 + 8 * 511 is 4092, so it is in both.
        for _ in 1..511 {
            assert_eq!(driver.request(kind::FLUSH, 0, &[], ABOUT), status::OK);
        }
        until_marked(&log, &expected);
        assert_eq!(driver.request(kind::FLUSH, 0, &[], ABOUT), status::OK);
        until_marked(&log, &(&expected | &pages([first + 1])));
    }
}

#[test]
fn a_log_that_cannot_be_is_refused() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), 0, RAM);
    let log = memory(4096);
    for (len, offset) in [(0, 0), (4097, 0), (1, 4096), (u64::MAX, 1)] {
        let refused =
            !machine.is_done(request::SET_LOG_BASE, &words(&[len, offset]), &[log.as_fd()]);
        assert!(refused, "{len} bytes at {offset}");
    }
    // A log that is too short for the memory: what it does not reach is not noted, and nothing is written past it.
    machine.tell(request::SET_LOG_BASE, &words(&[1, 0]), &[log.as_fd()]);
    machine.answer(request::SET_LOG_BASE);
    machine.done(request::SET_FEATURES, &words(&[BASIC | LOG_ALL]), &[]);
    let mut driver = Driver::new(&machine, 0, QUEUE, 64);
    let parts = [(0x3_000, 512, true), (0x20_000, 512, true)];
    assert_eq!(driver.request(kind::IN, 0, &parts, ABOUT), status::OK);
    let mut bytes = [0; 4096];
    log.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[0], 1 << 3);
    assert!(bytes[1..].iter().all(|byte| *byte == 0));
}
