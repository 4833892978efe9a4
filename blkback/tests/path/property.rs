//! Random requests over several queues against a model of the disk.

use std::sync::Arc;

use blkback::engine::memory::Disk;
use blkback::engine::{Choice, Medium};
use blkback::image::{Image, Options};
use blkback::policy::acquire::Reach;
use blkback::queue::{Command, Ended, Serving};
use blkback::throttle::Limits;
use blkback::validate::Rules;
use proptest::prelude::*;
use ring::wire::blkif::{Layout, Request, Segment, X86_32, X86_64, operation};
use tempfile::TempDir;

use crate::scene::{Guest, Scene};

/// Each queue has this many sectors of the disk to itself, so that its model needs no other.
const SECTORS: u64 = 512;
const PAGES: usize = 48;
/// Data pages that lists of segments lie in, one for each request under way.
const LISTS: usize = 8;

#[derive(Clone, Debug)]
enum Ask {
    Write { sector: u64, parts: Vec<(u8, u8)>, seed: u8 },
    Read { sector: u64, parts: Vec<(u8, u8)> },
    Discard { sector: u64, sectors: u64 },
    Flush,
    Barrier,
}

fn parts() -> impl Strategy<Value = Vec<(u8, u8)>> {
    let part = (0u8..8, 0u8..8).prop_map(|(a, b)| (a.min(b), a.max(b)));
    proptest::collection::vec(part, 1..30)
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        4 => (0..SECTORS, parts(), any::<u8>())
            .prop_map(|(sector, parts, seed)| Ask::Write { sector, parts, seed }),
        4 => (0..SECTORS, parts()).prop_map(|(sector, parts)| Ask::Read { sector, parts }),
        1 => (0..SECTORS, 1..SECTORS).prop_map(|(sector, sectors)| Ask::Discard { sector, sectors }),
        1 => Just(Ask::Flush),
        1 => Just(Ask::Barrier),
    ]
}

fn way() -> impl Strategy<Value = Reach> {
    prop_oneof![
        Just(Reach::Persistent { pages: 64 }),
        Just(Reach::Persistent { pages: 5 }),
        Just(Reach::Map),
        Just(Reach::Copy { pages: 300 }),
    ]
}

/// What the bytes end up on.
fn medium() -> impl Strategy<Value = Option<Choice>> {
    prop_oneof![Just(None), Just(Some(Choice::Auto)), Just(Some(Choice::Blocking))]
}

/// One queue's part of the disk, as it should be.
struct Model {
    bytes: Vec<u8>,
    first: u64,
}

fn sectors(parts: &[(u8, u8)]) -> u64 {
    parts.iter().map(|(first, last)| u64::from(last - first + 1)).sum()
}

/// Asks for one thing, as a plain or an indirect request, and checks what comes of it.
fn check<L: Layout>(
    guest: &mut Guest<L>,
    model: &mut Model,
    ask: &Ask,
    number: usize,
) -> Result<(), TestCaseError> {
    let page_of = |at: usize| (number + at) % (PAGES - LISTS);
    let segments = |guest: &Guest<L>, parts: &[(u8, u8)]| -> Vec<Segment> {
        let with = |(at, &(first, last)): (usize, &(u8, u8))| Segment {
            gref: guest.grefs[page_of(at)],
            first,
            last,
        };
        parts.iter().enumerate().map(with).collect()
    };
    let request =
        |guest: &mut Guest<L>, operation: u8, sector: u64, parts: &[(u8, u8)]| -> Request {
            let segments = segments(guest, parts);
            if parts.len() > 11 || number.is_multiple_of(3) {
                let list = PAGES - LISTS + number % LISTS;
                guest.indirect(operation, sector, &segments, list)
            } else if operation == operation::WRITE {
                guest.write(sector, &segments)
            } else {
                guest.read(sector, &segments)
            }
        };
    let whole = |sector: u64, count: u64| sector + count <= SECTORS;
    match ask {
        Ask::Write { sector, parts, seed } => {
            let count = sectors(parts);
            if !whole(*sector, count) {
                return Ok(());
            }
            (0..parts.len()).for_each(|at| guest.fill(page_of(at), seed.wrapping_add(at as u8)));
            let write = request(guest, operation::WRITE, model.first + sector, parts);
            prop_assert!(guest.ask(&write).is_okay());
            let mut at = (*sector * 512) as usize;
            for (place, (first, last)) in parts.iter().enumerate() {
                let page = guest.bytes(page_of(place));
                let part = &page[usize::from(*first) * 512..(usize::from(*last) + 1) * 512];
                model.bytes[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        }
        Ask::Read { sector, parts } => {
            if !whole(*sector, sectors(parts)) {
                return Ok(());
            }
            (0..parts.len()).for_each(|at| guest.fill(page_of(at), 0xA5));
            let read = request(guest, operation::READ, model.first + sector, parts);
            prop_assert!(guest.ask(&read).is_okay());
            let mut at = (*sector * 512) as usize;
            for (place, (first, last)) in parts.iter().enumerate() {
                let page = guest.bytes(page_of(place));
                let part = &page[usize::from(*first) * 512..(usize::from(*last) + 1) * 512];
                prop_assert_eq!(part, &model.bytes[at..at + part.len()]);
                at += part.len();
            }
        }
        Ask::Discard { sector, sectors } => {
            let count = (*sectors).min(SECTORS - sector);
            // Each medium here gives zeroes afterwards, though the protocol promises nothing.
            let discard = guest.discard(model.first + sector, count, number.is_multiple_of(2));
            prop_assert!(guest.ask(&discard).is_okay());
            let from = (*sector * 512) as usize;
            model.bytes[from..from + (count * 512) as usize].fill(0);
        }
        Ask::Flush => {
            let flush = guest.flush();
            prop_assert!(guest.ask(&flush).is_okay());
        }
        Ask::Barrier => {
            let barrier = guest.barrier(0, &[]);
            prop_assert!(guest.ask(&barrier).is_okay());
        }
    }
    Ok(())
}

/// A sparse image where cargo builds, which is a disk and not memory as a rule, or a disk in memory.
fn make(choice: Option<Choice>, queues: usize) -> (Medium, Option<(TempDir, Image)>) {
    let Some(choice) = choice else {
        return (Medium::Memory(Arc::new(Disk::new(4 << 20, 512).unwrap())), None);
    };
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut options = Options::new(folder.path().join("disk.img"));
    options.size = Some(4 << 20);
    options.queues = queues as u16;
    let image = Image::open(&options).unwrap();
    (Medium::Image(Arc::clone(image.media()), choice), Some((folder, image)))
}

fn run<L: Layout + Send>(
    queues: usize,
    (reach, choice): (Reach, Option<Choice>),
    limit: Option<u64>,
    asks: &[Ask],
) -> Result<(), TestCaseError> {
    let scene = Scene::new();
    let (medium, _image) = make(choice, queues);
    let mut rules = Rules::new();
    (rules.discard, rules.secure_discard) = (true, choice.is_none());
    let mut serving = Serving::new(rules, 4 << 11);
    serving.reach = Some(reach);
    serving.limits = Limits::new(limit, None);
    let serving = Arc::new(serving);
    let mut guests: Vec<Guest<L>> = (0..queues).map(|_| scene.guest(0, PAGES)).collect();
    let serve = |(number, guest): (usize, &Guest<L>)| {
        let medium = medium.clone();
        let engine = move || medium.engine(number as u16, 64);
        scene.serve(guest, &serving, true, engine)
    };
    let served: Vec<_> = guests.iter().enumerate().map(serve).collect();
    let all = std::thread::scope(|scope| {
        let start = |(number, guest)| {
            let first = number as u64 * SECTORS;
            scope.spawn(move || {
                let guest: &mut Guest<L> = guest;
                let mut model = Model { bytes: vec![0; (SECTORS * 512) as usize], first };
                for (at, ask) in asks.iter().enumerate() {
                    check(guest, &mut model, ask, at * 7 + number)?;
                }
                // All of it, as it is in the end.
                for sector in (0..SECTORS).step_by(8) {
                    check(guest, &mut model, &Ask::Read { sector, parts: vec![(0, 7)] }, number)?;
                }
                Ok::<(), TestCaseError>(())
            })
        };
        let threads: Vec<_> = guests.iter_mut().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    for one in all {
        one.map_err(|_| TestCaseError::fail("a guest panicked"))??;
    }
    for served in served {
        prop_assert_eq!(served.stats().errors(), 0);
        served.tell(Command::Drain);
        prop_assert_eq!(served.ended(), Ended::Drained);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_disk_is_what_the_model_says(
        queues in 1usize..4,
        reach in way(),
        choice in medium(),
        limited in any::<bool>(),
        narrow in any::<bool>(),
        asks in proptest::collection::vec(ask(), 1..60),
    ) {
        let limit = limited.then_some(20_000);
        if narrow {
            run::<X86_32>(queues, (reach, choice), limit, &asks)?;
        } else {
            run::<X86_64>(queues, (reach, choice), limit, &asks)?;
        }
    }
}
