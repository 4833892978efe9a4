//! Ordinary requests.

use blkfront::{Config, Operation, Private, Reason, Request};
use hypervisor::store::{Store, Transaction};

use crate::backend::{Backend, Features, bytes, connect, disk, run, scene, zeroes};
use blkfront::device::Phase;
use hypervisor::xenbus::State;

const MIB: usize = 1 << 20;

#[test]
fn what_is_written_is_read_back() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(4 * MIB, Features::default(), Config::default());
    for (tag, (offset, len)) in [
        (0, 512),
        (512, 4096),
        (4096, 11 * 4096),
        (100 * 512, 12 * 4096),
        (512, MIB),
        (4 * MIB - 512, 512),
    ]
    .into_iter()
    .enumerate()
    {
        let wrote =
            run(&mut disk, &mut backend, Request::write(offset as u64, bytes(len, tag as u8), 1));
        assert_eq!(wrote.result, Ok(()));
        assert_eq!(backend.disk[offset..offset + len], **bytes(len, tag as u8));
        let read = run(&mut disk, &mut backend, Request::read(offset as u64, zeroes(len), 2));
        assert_eq!(read.result, Ok(()));
        assert_eq!(*read.request.buffer, *bytes(len, tag as u8), "{len} bytes at {offset}");
    }
}

#[test]
fn every_combination_of_features_works() {
    for queues in [1, 3] {
        for ring_order in [0, 3] {
            for indirect in [0, 5, 32, 256] {
                for persistent in [false, true] {
                    let features = Features {
                        queues,
                        ring_order,
                        indirect,
                        persistent,
                        ..Features::default()
                    };
                    let mut config = Config::default();
                    config.queues = 4;
                    config.ring_order = 4;
                    let said = format!("{features:?}");
                    let (_machine, _guest, mut disk, mut backend) = scene(MIB, features, config);
                    assert_eq!(disk.queues().len(), queues as usize, "{said}");
                    assert_eq!(backend.queues(), queues as usize, "{said}");
                    assert_eq!(backend.slots(), 32 << ring_order, "{said}");
                    for len in [512, 11 * 4096, 13 * 4096, 300 * 512] {
                        let wrote =
                            run(&mut disk, &mut backend, Request::write(1024, bytes(len, 9), 1));
                        assert_eq!(wrote.result, Ok(()));
                        let read =
                            run(&mut disk, &mut backend, Request::read(1024, zeroes(len), 2));
                        assert_eq!(*read.request.buffer, *bytes(len, 9), "{said}");
                    }
                }
            }
        }
    }
}

#[test]
fn requests_that_cannot_be_are_refused_with_the_reason() {
    let (_machine, _guest, mut disk, mut backend) = scene(
        MIB,
        Features { sector_size: 4096, discard_granularity: None, ..Features::default() },
        Config::default(),
    );
    let mut refused = |request| {
        let queue = &mut disk.queues()[0];
        queue.submit(request).map_err(|rejected| rejected.reason).unwrap_err()
    };
    assert_eq!(refused(Request::read(0, zeroes(512), 0)), Reason::Unaligned(4096));
    assert_eq!(refused(Request::read(512, zeroes(4096), 0)), Reason::Unaligned(4096));
    assert_eq!(refused(Request::read(0, zeroes(0), 0)), Reason::Empty);
    assert_eq!(refused(Request::read(MIB as u64, zeroes(4096), 0)), Reason::PastEnd(MIB as u64));
    assert_eq!(
        refused(Request::read(u64::MAX - 4095, zeroes(4096), 0)),
        Reason::PastEnd(MIB as u64)
    );
    assert_eq!(refused(Request::discard(0, 4096, zeroes(0), 0)), Reason::Unsupported);
    let read = run(&mut disk, &mut backend, Request::read(4096, zeroes(8192), 2));
    assert_eq!(read.result, Ok(()));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (_machine, _guest, mut disk, _backend) =
        scene(MIB, Features { info: 4, ..Features::default() }, Config::default());
    let rejected = disk.queues()[0].submit(Request::write(0, zeroes(512), 0)).unwrap_err();
    assert_eq!(rejected.reason, Reason::ReadOnly);
    assert_eq!(rejected.request.buffer.len(), 512, "the buffer comes back");
}

#[test]
fn a_full_queue_says_so_and_goes_on() {
    let mut config = Config::default();
    config.depth = 4;
    let (_machine, _guest, mut disk, mut backend) = scene(MIB, Features::default(), config);
    let queue = &mut disk.queues()[0];
    for tag in 0..4 {
        queue.submit(Request::read(0, zeroes(512), tag)).unwrap();
    }
    let full = queue.submit(Request::read(0, zeroes(512), 9)).unwrap_err();
    assert_eq!(full.reason, Reason::Full);
    disk.poll().unwrap();
    backend.poll();
    disk.poll().unwrap();
    let queue = &mut disk.queues()[0];
    assert!(queue.complete().unwrap().result.is_ok());
    queue.submit(full.request).unwrap();
}

#[test]
fn flushes_and_discards_reach_the_backend() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    backend.disk.fill(7);
    assert_eq!(run(&mut disk, &mut backend, Request::flush(zeroes(0), 1)).result, Ok(()));
    // Whole extents only, and nothing where there is none.
    for (offset, len, want) in
        [(0, 8192, Some((0, 8192))), (512, 8192, Some((8, 4096))), (512, 2048, None)]
    {
        backend.log.clear();
        let request = Request::discard(offset, len, zeroes(0), 1);
        assert_eq!(run(&mut disk, &mut backend, request).result, Ok(()));
        let want: Vec<_> = want.map(|(sector, len)| (5, sector, len)).into_iter().collect();
        assert_eq!(backend.log, want);
    }
    let secure = Operation::Discard { len: 4096, secure: true };
    let request = Request { operation: secure, offset: 0, buffer: zeroes(0), tag: 0 };
    assert_eq!(disk.queues()[0].submit(request).unwrap_err().reason, Reason::Unsupported);
}

#[test]
fn more_work_than_pages_is_done_piece_by_piece() {
    let mut config = Config::default();
    config.pool_pages = 2;
    let (_machine, _guest, mut disk, mut backend) = scene(4 * MIB, Features::default(), config);
    for round in 0..4_u64 {
        let request = Request::write(round * MIB as u64, bytes(MIB, round as u8), round);
        disk.queues()[0].submit(request).unwrap();
    }
    let mut done = 0;
    while done < 4 {
        disk.poll().unwrap();
        backend.poll();
        while let Some(completion) = disk.queues()[0].complete() {
            assert_eq!(completion.result, Ok(()));
            done += 1;
        }
    }
    for round in 0..4 {
        assert_eq!(backend.disk[round * MIB..(round + 1) * MIB], **bytes(MIB, round as u8));
    }
}

#[test]
fn lent_memory_is_not_copied() {
    use blkfront::arena::Arena;
    use blkfront::buffer::Either;
    use blkfront::{Completion, Disk};
    let machine = hypervisor::testing::Machine::new();
    let guest = machine.domain("guest");
    let mut backend = Backend::new(&machine, "backend", &guest, 4 * MIB, Features::default());
    type Lendable = Either<Vec<u8>, crate::backend::Pages>;
    let mut disk: Disk<_, Lendable> =
        Disk::new(guest.clone(), crate::backend::DIRECTORY, Config::default());
    while disk.queues().is_empty() {
        disk.poll().unwrap();
        backend.connect();
    }
    let arena = Arena::new(&guest, backend.domain.id(), 300).unwrap();
    let mut run = |disk: &mut Disk<_, Lendable>, request| -> Completion<Lendable> {
        let done = disk.run(request, || {
            backend.poll();
        });
        done.unwrap().expect("the request is taken")
    };
    // On page boundaries, on sector boundaries, and on none, which has to be bounced.
    for (offset, len) in [(0, 4096), (4096 + 512, 20 * 4096), (100, 8192), (512, MIB)] {
        let part = arena.part(offset, len).unwrap();
        part.write(0, &bytes(len, 3));
        let wrote = run(&mut disk, Request::write(1024, Either::Lent(part), 1));
        assert_eq!(wrote.result, Ok(()));
        let Either::Lent(part) = wrote.request.buffer else { panic!("another buffer came back") };
        part.write(0, &vec![0; len]);
        let read = run(&mut disk, Request::read(1024, Either::Lent(part), 2));
        assert_eq!(read.result, Ok(()));
        let Either::Lent(part) = read.request.buffer else { panic!("another buffer came back") };
        let mut found = vec![0; len];
        part.read(0, &mut found);
        assert_eq!(found, **bytes(len, 3), "{len} bytes at {offset} of the arena");
    }
    let kept = arena.part(0, 512).unwrap();
    let arena = arena.close(&guest).expect_err("a part is still about");
    drop(kept);
    assert!(arena.part(0, 1).is_some());
    backend.let_go();
    arena.close(&guest).expect("nobody uses it");
}

#[test]
fn closing_leaves_a_clean_store_and_no_pages() {
    let machine = hypervisor::testing::Machine::new();
    let guest = machine.domain("guest");
    let before = guest.pages_in_use();
    let mut backend = Backend::new(&machine, "backend", &guest, MIB, Features::default());
    let mut first = disk(&guest, Config::default());
    connect(&mut first, &mut backend);
    let _ = run(&mut first, &mut backend, Request::write(0, bytes(4096, 1), 1));
    first.close().unwrap();
    assert_eq!(first.phase(), Phase::Closing);
    assert_eq!(backend.front_state(), State::Closing);
    backend.drop_rings();
    backend.say(&[], State::Closed);
    first.poll().unwrap();
    assert_eq!(first.phase(), Phase::Closed);
    let mut left = guest.list(Transaction::NONE, crate::backend::DIRECTORY).unwrap();
    left.sort();
    assert_eq!(left, ["backend", "backend-id", "state"]);
    assert_eq!(backend.front_state(), State::Closed);
    first.reclaim();
    assert_eq!(guest.pages_in_use(), before);
    // And again, by another driver of the same domain, with other parameters.
    backend.features.queues = 1;
    backend.features.ring_order = 0;
    backend.offer();
    let mut second = disk(&guest, Config::default());
    connect(&mut second, &mut backend);
    let read = run(&mut second, &mut backend, Request::read(0, zeroes(4096), 1));
    assert_eq!(*read.request.buffer, *bytes(4096, 1));
}

#[test]
fn a_new_size_is_noticed() {
    let (_machine, _guest, mut disk, mut backend) =
        scene(MIB, Features::default(), Config::default());
    backend.disk.resize(2 * MIB, 5);
    backend.describe();
    disk.poll().unwrap();
    assert_eq!(disk.info().unwrap().size, 2 * MIB as u64);
    let read = run(&mut disk, &mut backend, Request::read(MIB as u64, zeroes(512), 1));
    assert_eq!(
        *read.request.buffer,
        Private::<_, crate::backend::Pages>::new(vec![5; 512]).into_inner()
    );
}

#[test]
fn a_domain_that_has_little_to_grant_still_gets_its_ring() {
    let machine = hypervisor::testing::Machine::new();
    let mut spec = hypervisor::domain::DomainSpec::new("guest");
    spec.memory_kib = 1024;
    let guest = machine.domain_with(&spec);
    let mut backend = Backend::new(&machine, "backend", &guest, MIB, Features::default());
    // Whatever the pool wants, were it all there is: the ring cannot do with less than it needs.
    for pages in 1..=300 {
        let mut config = Config::default();
        config.pool_pages = pages;
        let mut disk = disk(&guest, config);
        connect(&mut disk, &mut backend);
        disk.close().unwrap();
        backend.drop_rings();
        backend.say(&[], State::Closed);
        disk.poll().unwrap();
        assert_eq!(disk.reclaim(), 0);
        backend.offer();
    }
}
