//! The ring against plain system calls on temporary files, and against its own limits.
#![expect(unsafe_code, reason = "the tests' buffers are raw memory, as a peer's pages are")]

mod packets;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use uring::{Buffers, Completed, FileId, Operation, Piece, Ring, WatchId};

/// No test waits longer for what must come.
const DEADLINE: Duration = Duration::from_secs(60);

/// Raw memory cut into pieces, and something that shows when it is dropped.
struct Held {
    base: *mut u8,
    len: usize,
    pieces: Vec<Piece>,
    tag: usize,
    _alive: Rc<()>,
}

// SAFETY: the allocation lives as long as `self`, and is only reached through raw pointers.
unsafe impl Buffers for Held {
    fn pieces(&self) -> &[Piece] {
        &self.pieces
    }
}

impl Held {
    /// Pieces of the given lengths with a gap of `gap` bytes between them, holding `bytes`.
    fn new(lens: &[usize], gap: usize, bytes: &[u8], tag: usize, alive: &Rc<()>) -> Self {
        let len = lens.iter().map(|len| len + gap).sum::<usize>().max(1);
        let base = Box::into_raw(vec![0_u8; len].into_boxed_slice()).cast::<u8>();
        let mut pieces = Vec::new();
        let (mut at, mut taken) = (0, 0);
        for &len in lens {
            let piece = Piece { base: base.wrapping_add(at), len: len as u32, fixed: None };
            let from = &bytes[taken.min(bytes.len())..(taken + len).min(bytes.len())];
            // SAFETY: the piece lies in the allocation made above.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), piece.base, from.len()) };
            pieces.push(piece);
            at += len + gap;
            taken += len;
        }
        Self { base, len, pieces, tag, _alive: Rc::clone(alive) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            // SAFETY: the piece lies in our allocation, and no operation is under way on it.
            let piece = unsafe { std::slice::from_raw_parts(piece.base, piece.len as usize) };
            bytes.extend_from_slice(piece);
        }
        bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let slice = std::ptr::slice_from_raw_parts_mut(self.base, self.len);
        // SAFETY: made by `Box::into_raw` with this length.
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// Says that something is not tested here, past the test harness, which would keep what a test that
/// passes has said to itself. Where nothing may be skipped (`DOMKIT_NO_SKIP=1`), it fails.
fn skipped(why: &dyn std::fmt::Display) {
    let allowed = std::env::var_os("DOMKIT_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "must not be skipped here (DOMKIT_NO_SKIP=1): {why}");
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}

/// A ring, or a loud skip where the machine has no io_uring.
fn ring(depth: u32) -> Option<Ring<Held>> {
    match Ring::new(depth) {
        Ok(ring) => Some(ring),
        Err(error) => {
            skipped(&error);
            None
        }
    }
}

fn collect(ring: &mut Ring<Held>, count: usize) -> Vec<Completed<Held>> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(start.elapsed() < DEADLINE, "{} of {count} operations finished", all.len());
        ring.wait(Some(Duration::from_secs(5))).unwrap();
        ring.completed(&mut all).unwrap();
    }
    all
}

fn one(ring: &mut Ring<Held>, operation: Operation, held: Held) -> (Held, Result<u64, i32>) {
    assert!(ring.begin(operation, held).is_ok());
    let done = collect(ring, 1).remove(0);
    assert_eq!(done.operation, operation);
    (done.held, done.result)
}

fn add(ring: &mut Ring<Held>, file: &File) -> FileId {
    ring.add_file(file.as_fd()).unwrap()
}

fn eventfd() -> File {
    // SAFETY: no memory is involved.
    let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(raw >= 0);
    // SAFETY: the descriptor is new and nobody else's.
    File::from(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, lens: Vec<usize>, gap: usize },
    Write { offset: u64, lens: Vec<usize>, gap: usize, byte: u8 },
    Sync,
    Punch { offset: u64, len: u64 },
}

const SIZE: u64 = 256 * 1024;

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let lens = || prop::collection::vec(1_usize..5000, 1..8);
    let gap = || prop_oneof![Just(0_usize), 1_usize..64];
    let step = prop_oneof![
        (0..SIZE, lens(), gap()).prop_map(|(offset, lens, gap)| Step::Read { offset, lens, gap }),
        (0..SIZE, lens(), gap(), any::<u8>()).prop_map(|(offset, lens, gap, byte)| Step::Write {
            offset,
            lens,
            gap,
            byte
        }),
        Just(Step::Sync),
        (0..SIZE, 1..SIZE).prop_map(|(offset, len)| Step::Punch { offset, len }),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..6), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Batches of reads at once, and writes one after another, do to a file what the plain calls do
    /// to its twin.
    #[test]
    fn a_file_is_as_its_twin(batches in steps()) {
        let Some(mut ring) = ring(8) else { return Ok(()) };
        let alive = Rc::new(());
        let (ours, twin) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        ours.set_len(SIZE).unwrap();
        twin.set_len(SIZE).unwrap();
        let file = add(&mut ring, &ours);
        for batch in batches {
            let mut expected = Vec::new();
            for (tag, step) in batch.into_iter().enumerate() {
                match step {
                    Step::Read { offset, lens, gap } => {
                        let held = Held::new(&lens, gap, &[], tag, &alive);
                        let mut want = vec![0; lens.iter().sum()];
                        let mut got = 0;
                        while let n @ 1.. = twin.read_at(&mut want[got..], offset + got as u64).unwrap() {
                            got += n;
                        }
                        want.truncate(got);
                        let begun = ring.begin(Operation::Read { file, offset }, held).is_ok();
prop_assert!(begun);
                        expected.push((tag, want));
                    }
                    Step::Write { offset, lens, gap, byte } => {
                        for done in collect(&mut ring, expected.len()) {
                            check(&done, &mut expected)?;
                        }
                        let bytes: Vec<u8> =
                            (0..lens.iter().sum::<usize>()).map(|i| byte.wrapping_add(i as u8)).collect();
                        let held = Held::new(&lens, gap, &bytes, tag, &alive);
                        let (_, result) = one(&mut ring, Operation::Write { file, offset }, held);
                        prop_assert_eq!(result, Ok(bytes.len() as u64));
                        twin.write_all_at(&bytes, offset).unwrap();
                    }
                    Step::Sync => {
                        let held = Held::new(&[], 0, &[], tag, &alive);
                        let begun = ring.begin(Operation::Sync { file }, held).is_ok();
prop_assert!(begun);
                        expected.push((tag, Vec::new()));
                    }
                    Step::Punch { offset, len } => {
                        for done in collect(&mut ring, expected.len()) {
                            check(&done, &mut expected)?;
                        }
                        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                        let held = Held::new(&[], 0, &[], tag, &alive);
                        let operation = Operation::Allocate { file, mode, offset, len };
                        prop_assert_eq!(one(&mut ring, operation, held).1, Ok(0));
                        let length = twin.metadata().unwrap().len();
                        let end = (offset + len).min(length).max(offset);
                        if offset < length {
                            twin.write_all_at(&vec![0; (end - offset) as usize], offset).unwrap();
                        }
                    }
                }
            }
            prop_assert_eq!(ring.under_way(), expected.len());
            for done in collect(&mut ring, expected.len()) {
                check(&done, &mut expected)?;
            }
            prop_assert_eq!(Rc::strong_count(&alive), 1);
        }
        let size = twin.metadata().unwrap().len();
        prop_assert_eq!(ours.metadata().unwrap().len(), size);
        let (mut a, mut b) = (vec![0; size as usize], vec![0; size as usize]);
        ours.read_exact_at(&mut a, 0).unwrap();
        twin.read_exact_at(&mut b, 0).unwrap();
        prop_assert!(a == b);
    }
}

fn check(
    done: &Completed<Held>,
    expected: &mut Vec<(usize, Vec<u8>)>,
) -> Result<(), TestCaseError> {
    let at = expected.iter().position(|(tag, _)| *tag == done.held.tag);
    let (_, want) = expected.swap_remove(at.expect("nothing completes twice"));
    prop_assert_eq!(done.result, Ok(want.len() as u64));
    prop_assert!(done.held.bytes()[..want.len()] == want[..]);
    Ok(())
}

#[test]
fn a_full_ring_gives_back_what_it_cannot_take() {
    let Some(mut ring) = ring(4) else { return };
    let alive = Rc::new(());
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let file = add(&mut ring, &file);
    for tag in 0..4 {
        let held = Held::new(&[512], 0, &[], tag, &alive);
        assert!(ring.begin(Operation::Read { file, offset: 0 }, held).is_ok());
    }
    let held = Held::new(&[512], 0, &[], 99, &alive);
    let Err(back) = ring.begin(Operation::Read { file, offset: 0 }, held) else {
        panic!("a fifth operation was taken by a ring for four")
    };
    assert_eq!(back.tag, 99);
    assert_eq!(collect(&mut ring, 4).len(), 4);
    assert!(ring.begin(Operation::Read { file, offset: 0 }, back).is_ok());
    collect(&mut ring, 1);
}

#[test]
fn registered_buffers_carry_the_same_bytes() {
    let Some(mut ring) = ring(8) else { return };
    if let Err(error) = ring.make_buffers(4) {
        skipped(&error);
        return;
    }
    let alive = Rc::new(());
    let file = tempfile::tempfile().unwrap();
    let id = add(&mut ring, &file);
    let bytes: Vec<u8> = (0..16384_u32).map(|i| (i / 7) as u8).collect();
    let mut held = Held::new(&[4096, 4096, 8192], 0, &bytes, 0, &alive);
    ring.set_buffer(2, held.base, held.len).unwrap();
    for piece in &mut held.pieces {
        piece.fixed = Some(2);
    }
    let (held, result) = one(&mut ring, Operation::Write { file: id, offset: 512 }, held);
    assert_eq!(result, Ok(16384));
    let mut back = vec![0; 16384];
    file.read_exact_at(&mut back, 512).unwrap();
    assert!(back == bytes);
    let (held, result) = one(&mut ring, Operation::Read { file: id, offset: 1024 }, held);
    assert_eq!(result, Ok(15872), "the file ends there");
    assert!(held.bytes()[..15872] == bytes[512..]);
    // An emptied slot is refused, which shows that the registered buffer was what carried these.
    ring.set_buffer(2, std::ptr::null_mut(), 0).unwrap();
    let (mut held, result) = one(&mut ring, Operation::Read { file: id, offset: 0 }, held);
    assert_eq!(result, Err(libc::EFAULT));
    // A slot beyond the table is no registered buffer at all.
    for piece in &mut held.pieces {
        piece.fixed = Some(77);
    }
    assert_eq!(one(&mut ring, Operation::Read { file: id, offset: 512 }, held).1, Ok(16384));
}

#[test]
fn transfers_that_the_kernel_cuts_short_are_resumed() {
    let Some(mut ring) = ring(4) else { return };
    let alive = Rc::new(());
    let file = tempfile::tempfile().unwrap();
    let id = add(&mut ring, &file);
    // More pieces than one call takes (IOV_MAX), so that the kernel sees it in three parts.
    let lens = vec![3; 2500];
    let bytes: Vec<u8> = (0..7500_u32).map(|i| (i / 3) as u8).collect();
    let held = Held::new(&lens, 5, &bytes, 0, &alive);
    let (_, result) = one(&mut ring, Operation::Write { file: id, offset: 1 }, held);
    assert_eq!(result, Ok(7500));
    let mut back = vec![0; 7500];
    file.read_exact_at(&mut back, 1).unwrap();
    assert!(back == bytes);
    let held = Held::new(&lens, 1, &[], 0, &alive);
    let (held, result) = one(&mut ring, Operation::Read { file: id, offset: 1 }, held);
    assert_eq!(result, Ok(7500));
    assert!(held.bytes() == bytes);
    let held = Held::new(&[8192], 0, &[], 0, &alive);
    assert_eq!(one(&mut ring, Operation::Read { file: id, offset: 7001 }, held).1, Ok(500));
}

#[test]
fn errors_come_back_with_what_was_held() {
    let Some(mut ring) = ring(4) else { return };
    let alive = Rc::new(());
    let file = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(file.path()).unwrap();
    let id = add(&mut ring, &read_only);
    let held = Held::new(&[512], 0, &[], 7, &alive);
    let (held, result) = one(&mut ring, Operation::Write { file: id, offset: 0 }, held);
    assert_eq!((held.tag, result), (7, Err(libc::EBADF)));
    ring.remove_file(id).unwrap();
    let (_, result) = one(&mut ring, Operation::Read { file: id, offset: 0 }, held);
    assert_eq!(result, Err(libc::EBADF), "a file that was taken out is gone");
    let no_device = Operation::Discard { file: add(&mut ring, &read_only), offset: 0, len: 512 };
    let (_, result) = one(&mut ring, no_device, Held::new(&[], 0, &[], 0, &alive));
    assert!(result.is_err(), "a file is no block device");
}

#[test]
fn the_table_of_files_has_an_end_and_keeps_what_is_closed() {
    let Some(mut ring) = ring(4) else { return };
    let alive = Rc::new(());
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    let id = add(&mut ring, &file);
    let others: Vec<_> = (1..64).map(|_| add(&mut ring, &file)).collect();
    assert_eq!(ring.add_file(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENFILE));
    for other in others {
        ring.remove_file(other).unwrap();
    }
    drop(file);
    let held = Held::new(&[4], 0, &[], 0, &alive);
    let (held, result) = one(&mut ring, Operation::Read { file: id, offset: 0 }, held);
    assert_eq!((result, held.bytes().as_slice()), (Ok(4), b"kept".as_slice()));
}

/// Waits until the watched descriptor is reported.
fn until_ready(ring: &mut Ring<Held>, watch: WatchId) {
    let start = Instant::now();
    while !ring.take_ready(watch) {
        assert!(start.elapsed() < DEADLINE, "the descriptor is not reported");
        ring.wait(Some(Duration::from_secs(5))).unwrap();
        ring.completed(&mut Vec::new()).unwrap();
    }
}

fn raise(events: &mut File) {
    events.write_all(&1_u64.to_ne_bytes()).unwrap();
}

fn clear(events: &mut File) {
    events.read_exact(&mut [0; 8]).unwrap();
}

/// Whether a short wait reports it.
fn is_reported(ring: &mut Ring<Held>, watch: WatchId) -> bool {
    ring.wait(Some(Duration::from_millis(5))).unwrap();
    ring.completed(&mut Vec::new()).unwrap();
    ring.take_ready(watch)
}

#[test]
fn watches_report_each_time_and_no_longer_when_taken_back() {
    let Some(mut ring) = ring(4) else { return };
    let (mut first, mut second) = (eventfd(), eventfd());
    let (a, b) = (ring.watch(first.as_fd()).unwrap(), ring.watch(second.as_fd()).unwrap());
    assert!(!is_reported(&mut ring, a), "nothing has happened yet");
    for _ in 0..1000 {
        raise(&mut first);
        until_ready(&mut ring, a);
        clear(&mut first);
        assert!(!ring.take_ready(b));
        raise(&mut second);
        until_ready(&mut ring, b);
        clear(&mut second);
    }
    // From another thread, while this one sleeps without a time limit.
    let mut other = first.try_clone().unwrap();
    let writer = std::thread::spawn(move || raise(&mut other));
    let start = Instant::now();
    // A report of what was cleared meanwhile may still be on its way: only the counter decides.
    while first.read(&mut [0; 8]).is_err() {
        assert!(start.elapsed() < DEADLINE);
        ring.wait(None).unwrap();
        ring.completed(&mut Vec::new()).unwrap();
        ring.take_ready(a);
    }
    writer.join().unwrap();
    ring.unwatch(a).unwrap();
    raise(&mut first);
    assert!(!is_reported(&mut ring, a));
}

#[test]
fn what_is_left_unread_is_reported_again() {
    let Some(mut ring) = ring(1) else { return };
    let alive = Rc::new(());
    let mut events = eventfd();
    let watch = ring.watch(events.as_fd()).unwrap();
    raise(&mut events);
    for _ in 0..100 {
        until_ready(&mut ring, watch);
    }
    // Far more than the completion queue holds, with nobody looking.
    for _ in 0..10_000 {
        raise(&mut events);
        ring.kick().unwrap();
    }
    let file = tempfile::tempfile().unwrap();
    let file = add(&mut ring, &file);
    let held = Held::new(&[], 0, &[], 0, &alive);
    assert_eq!(one(&mut ring, Operation::Sync { file }, held).1, Ok(0));
    until_ready(&mut ring, watch);
}

#[test]
fn a_dropped_ring_waits_for_what_is_under_way() {
    let alive = Rc::new(());
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    for round in 0..50 {
        let Some(mut ring) = ring(32) else { return };
        let id = add(&mut ring, &file);
        ring.watch(eventfd().as_fd()).unwrap();
        for tag in 0..32 {
            let held = Held::new(&[65536, 65536], 64, &[round; 131_072], tag, &alive);
            let offset = tag as u64 * 131_072;
            let operation = match tag % 4 {
                0 => Operation::Read { file: id, offset },
                3 => Operation::Sync { file: id },
                _ => Operation::Write { file: id, offset },
            };
            assert!(ring.begin(operation, held).is_ok());
        }
        if round % 2 == 0 {
            ring.kick().unwrap();
        }
        drop(ring);
        assert_eq!(Rc::strong_count(&alive), 1, "everything held was freed, once");
    }
}

#[test]
fn a_dropped_ring_lets_go_of_its_files_at_once() {
    for _ in 0..20 {
        let Some(mut ring) = ring(4) else { return };
        let (reader, mut writer) = std::io::pipe().unwrap();
        ring.watch(reader.as_fd()).unwrap();
        ring.add_file(reader.as_fd()).unwrap();
        ring.kick().unwrap();
        drop(reader);
        drop(ring);
        // A pipe whose reading end is gone says so; the kernel frees it within its own time.
        let start = Instant::now();
        while writer.write_all(&[0]).is_ok() {
            assert!(start.elapsed() < DEADLINE, "something still has the reading end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_watch_that_is_not_wanted_ends_no_wait() {
    let Some(mut ring) = ring(1) else { return };
    let mut events = eventfd();
    let watch = ring.watch(events.as_fd()).unwrap();
    ring.want(watch, false);
    raise(&mut events);
    assert!(!is_reported(&mut ring, watch));
    ring.want(watch, true);
    // Without a wait: the kernel looks from a kick on, and the ring says so by itself.
    ring.listen();
    ring.kick().unwrap();
    let start = Instant::now();
    loop {
        ring.completed(&mut Vec::new()).unwrap();
        if ring.take_ready(watch) {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "the descriptor is not reported");
    }
}
