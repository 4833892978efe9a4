//! One queue from end to end: every operation, in every layout, however pages are reached.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::scene::{Guest, Scene, disk};
use blkback::policy::acquire::Reach;
use blkback::queue::{Command, Ended};
use blkback::validate::Rules;
use hypervisor::PAGE_SIZE;
use hypervisor::memory::Revoked;
use ring::wire::blkif::{
    Kind, Layout, Native, Request, Segment, Status, X86_32, X86_64, operation,
};

const WAYS: [Reach; 5] = [
    Reach::Persistent { pages: Reach::PERSISTENT_PAGES },
    Reach::Persistent { pages: 3 },
    Reach::Map,
    Reach::Copy { pages: Reach::COPY_PAGES },
    Reach::Copy { pages: 0 },
];

/// A disk that can do everything.
pub(crate) fn all() -> Rules {
    let mut rules = Rules::new();
    (rules.discard, rules.secure_discard) = (true, true);
    rules
}

/// Writes and reads back through every kind of request.
fn round_trip<L: Layout>(reach: Reach, order: u32) {
    let scene = Scene::new();
    let mut guest: Guest<L> = scene.guest(order, 40);
    let (disk, mut serving) = disk(8, all());
    serving.reach = Some(reach);
    let serving = Arc::new(serving);
    let served = scene.serve_memory(&guest, &serving, false, &disk);

    // Eleven pages in one request, out and back in at other pages.
    (0..11).for_each(|page| guest.fill(page, page as u8));
    let out = guest.segments(0, 11);
    let write = guest.write(64, &out);
    assert_eq!(guest.ask(&write), Status::OKAY);
    let back_in = guest.segments(20, 11);
    let read = guest.read(64, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    (0..11).for_each(|page| assert_eq!(guest.bytes(page), guest.bytes(page + 20), "{page}"));

    // Parts of pages.
    let part = Segment { gref: guest.grefs[1], first: 2, last: 4 };
    let other = Segment { gref: guest.grefs[30], first: 5, last: 7 };
    let before = guest.bytes(30);
    let write = guest.write(1000, &[part]);
    assert_eq!(guest.ask(&write), Status::OKAY);
    let read = guest.read(1000, &[other]);
    assert_eq!(guest.ask(&read), Status::OKAY);
    let after = guest.bytes(30);
    assert_eq!(after[5 * 512..], guest.bytes(1)[2 * 512..5 * 512]);
    assert_eq!(after[..5 * 512], before[..5 * 512], "nothing else was touched");

    // Indirect, both ways.
    (0..16).for_each(|page| guest.fill(page, 100 + page as u8));
    let out: Vec<_> = (0..16).rev().flat_map(|page| guest.segments(page, 1)).collect();
    let write = guest.indirect(operation::WRITE, 4096, &out, 38);
    assert_eq!(guest.ask(&write), Status::OKAY);
    let back_in = guest.segments(16, 16);
    let read = guest.indirect(operation::READ, 4096, &back_in, 38);
    assert_eq!(guest.ask(&read), Status::OKAY);
    (0..16).for_each(|page| assert_eq!(guest.bytes(15 - page), guest.bytes(page + 16), "{page}"));

    // Flush, flush with data, barrier with and without, discard.
    let flush = guest.flush();
    assert_eq!(guest.ask(&flush), Status::OKAY);
    let mut with_data = guest.write(8, &out[..1]);
    let Kind::Write(data) = with_data.kind.clone() else { unreachable!() };
    (with_data.operation, with_data.kind) = (operation::FLUSH_DISKCACHE, Kind::Flush(data));
    assert_eq!(guest.ask(&with_data), Status::OKAY);
    let barrier = guest.barrier(16, &out[1..2]);
    assert_eq!(guest.ask(&barrier), Status::OKAY);
    let barrier = guest.barrier(0, &[]);
    assert_eq!(guest.ask(&barrier), Status::OKAY);
    let back_in = guest.segments(32, 2);
    let read = guest.read(8, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!((guest.bytes(32), guest.bytes(33)), (guest.bytes(15), guest.bytes(14)));
    for secure in [false, true] {
        let discard = guest.discard(8, 8, secure);
        assert_eq!(guest.ask(&discard), Status::OKAY);
    }
    let read = guest.read(8, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!(guest.bytes(32), [0; PAGE_SIZE], "discarded");
    assert_eq!(guest.bytes(33), guest.bytes(14));

    let seen = served.stats();
    assert_eq!((seen.reads, seen.writes, seen.flushes), (5, 3, 2));
    assert_eq!((seen.barriers, seen.discards, seen.errors()), (2, 2, 0));
    assert_eq!(seen.bytes_discarded, 2 * 4096);
    served.tell(Command::Drain);
    assert_eq!(served.ended(), Ended::Drained);
    // Nothing stays mapped behind a queue.
    for page in 0..40 {
        assert_eq!(guest.revoke(page), Revoked::Done, "page {page} with {reach:?}");
    }
}

#[test]
fn every_operation_in_every_layout_however_pages_are_reached() {
    for reach in WAYS {
        round_trip::<X86_64>(reach, 0);
        round_trip::<X86_32>(reach, 0);
        round_trip::<Native>(reach, 2);
    }
}

#[test]
fn a_request_of_256_segments_moves_a_mebibyte() {
    for reach in WAYS {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 513);
        let (disk, mut serving) = disk(4, all());
        serving.reach = Some(reach);
        let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
        (0..256).for_each(|page| guest.fill(page, page as u8));
        let out = guest.segments(0, 256);
        let write = guest.indirect(operation::WRITE, 8, &out, 512);
        assert_eq!(guest.ask(&write), Status::OKAY);
        let back_in = guest.segments(256, 256);
        let read = guest.indirect(operation::READ, 8, &back_in, 512);
        assert_eq!(guest.ask(&read), Status::OKAY);
        (0..256).for_each(|page| assert_eq!(guest.bytes(page), guest.bytes(page + 256)));
        let out = guest.segments(0, 257);
        let write = guest.indirect(operation::WRITE, 8, &out, 512);
        assert_eq!(guest.ask(&write), Status::ERROR);
        assert_eq!(served.stats().refused.get("segment_count"), Some(&1));
    }
}

#[test]
fn an_indirect_answer_names_the_operation_inside() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 2);
    let (disk, serving) = disk(1, all());
    let _served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    let one = guest.segments(0, 1);
    for inside in [operation::READ, operation::WRITE] {
        let request = guest.indirect(inside, 0, &one, 1);
        guest.submit(&request);
        assert_eq!(guest.answer().operation, inside);
    }
}

#[test]
fn sectors_of_4096_bytes_keep_units_of_512() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 4);
    let mut rules = all();
    rules.sector_size = 4096;
    let (disk, serving) = disk(1, rules);
    let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    guest.fill(0, 9);
    let whole = guest.segments(0, 1);
    let write = guest.write(2048 - 8, &whole);
    assert_eq!(guest.ask(&write), Status::OKAY, "the last sector");
    let write = guest.write(2048 - 4, &whole);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let write = guest.write(4, &whole);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let half = Segment { gref: guest.grefs[0], first: 0, last: 3 };
    let write = guest.write(8, &[half]);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let back_in = guest.segments(1, 1);
    let read = guest.read(2048 - 8, &back_in);
    assert_eq!(guest.ask(&read), Status::OKAY);
    assert_eq!(guest.bytes(1), guest.bytes(0));
    let seen = served.stats();
    assert_eq!((seen.refused["misaligned"], seen.refused["past_end"]), (2, 1));
}

#[test]
fn what_a_disk_cannot_do_is_answered_as_the_header_says() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 2);
    let mut rules = Rules::new();
    rules.read_only = true;
    let (disk, serving) = disk(1, rules);
    let served = scene.serve_memory(&guest, &Arc::new(serving), true, &disk);
    let one = guest.segments(0, 1);
    let write = guest.write(0, &one);
    assert_eq!(guest.ask(&write), Status::ERROR);
    let barrier = guest.barrier(0, &one);
    assert_eq!(guest.ask(&barrier), Status::ERROR);
    let discard = guest.discard(0, 8, false);
    assert_eq!(guest.ask(&discard), Status::NOT_SUPPORTED);
    let read = guest.read(0, &one);
    assert_eq!(guest.ask(&read), Status::OKAY);
    let flush = guest.flush();
    assert_eq!(guest.ask(&flush), Status::OKAY);
    let mut unknown = guest.flush();
    (unknown.operation, unknown.kind) = (77, Kind::Unknown(77));
    guest.submit(&unknown);
    let answer = guest.answer();
    assert_eq!((answer.id, answer.operation), (unknown.id, 77));
    assert_eq!(answer.status, Status::NOT_SUPPORTED);
    let seen = served.stats();
    assert_eq!((seen.refused["read_only"], seen.refused["unknown_operation"]), (2, 1));
    assert_eq!(seen.refused["no_discard"], 1);
}

#[test]
fn a_disk_that_grows_is_larger_at_once() {
    let scene = Scene::new();
    let mut guest: Guest = scene.guest(0, 1);
    let (disk, mut serving) = disk(2, all());
    *serving.sectors.get_mut() = 2048;
    let serving = Arc::new(serving);
    let _served = scene.serve_memory(&guest, &serving, true, &disk);
    let one = guest.segments(0, 1);
    let write = guest.write(2048, &one);
    assert_eq!(guest.ask(&write), Status::ERROR);
    serving.sectors.store(4096, Ordering::Relaxed);
    let write = guest.write(2048, &one);
    assert_eq!(guest.ask(&write), Status::OKAY);
    serving.sectors.store(1024, Ordering::Relaxed);
    let write = guest.write(1024, &one);
    assert_eq!(guest.ask(&write), Status::ERROR, "and smaller");
}

#[test]
fn pages_stay_mapped_for_a_frontend_that_reuses_them_and_for_no_other() {
    for persistent in [true, false] {
        let scene = Scene::new();
        let mut guest: Guest = scene.guest(0, 4);
        let (disk, serving) = disk(1, all());
        let served = scene.serve_memory(&guest, &Arc::new(serving), persistent, &disk);
        let all = guest.segments(0, 3);
        let write = guest.write(0, &all);
        assert_eq!(guest.ask(&write), Status::OKAY);
        let mapped = if persistent { Revoked::Busy } else { Revoked::Done };
        assert_eq!(guest.revoke(0), mapped);
        assert_eq!(guest.revoke(3), Revoked::Done);
        let pages = if persistent { 3 } else { 0 };
        served.until("counted", |seen| seen.turns > 0 && seen.mapped_pages == pages);
    }
}

#[test]
fn two_disks_in_one_process_know_nothing_of_each_other() {
    let scene = Scene::new();
    let (mut one, mut two): (Guest, Guest) = (scene.guest(0, 2), scene.guest(0, 2));
    let ((first, serving), (second, other)) = (disk(1, all()), disk(1, all()));
    let _a = scene.serve_memory(&one, &Arc::new(serving), true, &first);
    let _b = scene.serve_memory(&two, &Arc::new(other), true, &second);
    for (guest, seed) in [(&mut one, 1), (&mut two, 2)] {
        guest.fill(0, seed);
        let page = guest.segments(0, 1);
        let write = guest.write(0, &page);
        assert_eq!(guest.ask(&write), Status::OKAY);
    }
    for guest in [&mut one, &mut two] {
        let page = guest.segments(1, 1);
        let read: Request = guest.read(0, &page);
        assert_eq!(guest.ask(&read), Status::OKAY);
        assert_eq!(guest.bytes(0), guest.bytes(1));
    }
}
