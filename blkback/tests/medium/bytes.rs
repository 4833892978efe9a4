//! Every engine moves the bytes it is told to move, and answers everything it takes on.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkback::engine::memory::Disk;
use blkback::engine::{Choice, Engine, Medium, Operation};
use blkback::image::{Direct, Geometry, Image, Options};
use proptest::prelude::*;

use crate::buffers::Pages;
use crate::drive::{DEADLINE, finish, one};
use crate::host::skipped;

const SIZE: u64 = 1 << 20;

/// All kinds of media, each named; images are in `folder`, and stay claimed while they are held.
fn media(folder: &std::path::Path) -> Vec<(String, Option<Image>, Medium)> {
    let mut media =
        vec![("memory".to_owned(), None, Medium::Memory(Arc::new(Disk::new(SIZE, 512).unwrap())))];
    for (number, choice) in [Choice::Auto, Choice::Blocking].into_iter().enumerate() {
        for direct in [Direct::Auto, Direct::Off] {
            let mut options = Options::new(folder.join(format!("{number}-{direct}.img")));
            options.size = Some(SIZE);
            options.direct = direct;
            options.queues = 2;
            let image = Image::open(&options).unwrap();
            let name = format!("{choice:?} {:?}", image.media().transfers());
            let medium = Medium::Image(Arc::clone(image.media()), choice);
            media.push((name, Some(image), medium));
        }
    }
    media
}

/// Folders on the machine's disk and, where there is one, in its memory.
fn folders() -> Vec<tempfile::TempDir> {
    let mut folders = vec![tempfile::tempdir().unwrap()];
    match tempfile::tempdir_in("/dev/shm") {
        Ok(folder) => folders.push(folder),
        Err(error) => skipped(&format!("images in memory: /dev/shm: {error}")),
    }
    folders
}

/// Segments of a request, in units of 512 bytes.
fn segments() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1_usize..=8, 1..12)
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, Vec<usize>),
    Write(u64, Vec<usize>, u8),
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let sector = 0..SIZE / 512 - 96;
    prop_oneof![
        3 => (sector.clone(), segments()).prop_map(|(at, lens)| Step::Read(at, lens)),
        4 => (sector.clone(), segments(), any::<u8>())
            .prop_map(|(at, lens, byte)| Step::Write(at, lens, byte)),
        1 => (sector.clone(), 1..96_u64).prop_map(|(at, count)| Step::Discard(at, count)),
        2 => (sector, 1..96_u64, any::<bool>())
            .prop_map(|(at, count, unmap)| Step::Zero(at, count, unmap)),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each engine behaves as an array of bytes does.
    #[test]
    fn a_medium_is_an_array_of_bytes(steps in prop::collection::vec(step(), 1..40)) {
        for folder in folders() {
            for (name, _image, medium) in media(folder.path()) {
                let mut engine = medium.engine::<Pages>(1, 8).unwrap();
                let mut model = vec![0_u8; SIZE as usize];
                for step in &steps {
                    match step {
                        Step::Read(sector, units) => {
                            let lens: Vec<_> = units.iter().map(|unit| unit * 512).collect();
                            let (offset, total) = (sector * 512, lens.iter().sum::<usize>());
                            let held = Pages::new(&lens, &[]);
                            let (held, result) = one(&mut engine, Operation::Read { offset }, held);
                            prop_assert_eq!(result, Ok(total as u64), "{}", &name);
                            let want = &model[offset as usize..][..total];
                            prop_assert!(held.bytes() == want, "{}: at {}", &name, offset);
                        }
                        Step::Write(sector, units, byte) => {
                            let lens: Vec<_> = units.iter().map(|unit| unit * 512).collect();
                            let (offset, total) = (sector * 512, lens.iter().sum::<usize>());
                            let bytes: Vec<_> =
                                (0..total).map(|at| byte.wrapping_add((at / 3) as u8)).collect();
                            let held = Pages::new(&lens, &bytes);
                            let (_, result) = one(&mut engine, Operation::Write { offset }, held);
                            prop_assert_eq!(result, Ok(total as u64), "{}", &name);
                            model[offset as usize..][..total].copy_from_slice(&bytes);
                        }
                        Step::Discard(sector, count) => {
                            let (offset, len) = (sector * 512, count * 512);
                            let operation = Operation::Discard { offset, len, secure: false };
                            let (_, result) = one(&mut engine, operation, Pages::none());
                            prop_assert!(result.is_ok(), "{}: {:?}", &name, result);
                            // What is discarded need not read as zeroes, but on these it does.
                            model[offset as usize..][..len as usize].fill(0);
                        }
                        Step::Zero(sector, count, unmap) => {
                            let (offset, len) = (sector * 512, count * 512);
                            let operation = Operation::Zero { offset, len, unmap: *unmap };
                            let (_, result) = one(&mut engine, operation, Pages::none());
                            prop_assert_eq!(result, Ok(0), "{}", &name);
                            model[offset as usize..][..len as usize].fill(0);
                        }
                        Step::Flush => {
                            let (_, result) = one(&mut engine, Operation::Flush, Pages::none());
                            prop_assert!(result.is_ok(), "{}: {:?}", &name, result);
                        }
                    }
                }
                // Another queue sees the same.
                let mut other = medium.engine::<Pages>(0, 8).unwrap();
                let read = Operation::Read { offset: 0 };
                let (held, _) = one(&mut other, read, Pages::new(&[SIZE as usize], &[]));
                prop_assert!(held.bytes() == model, "{}: seen from another queue", &name);
            }
        }
    }
}

#[test]
fn a_full_engine_gives_back_and_goes_on() {
    for folder in folders() {
        for (name, _image, medium) in media(folder.path()) {
            let mut engine = medium.engine::<Pages>(0, 4).unwrap();
            for _round in 0..3 {
                for at in 0..4_u8 {
                    let operation = Operation::Write { offset: u64::from(at) * 4096 };
                    let held = Pages::new(&[4096], &[at; 4096]);
                    assert!(engine.submit(operation, held).is_ok(), "{name}");
                }
                assert_eq!(engine.under_way(), 4, "{name}");
                assert!(engine.submit(Operation::Flush, Pages::none()).is_err(), "{name}");
                engine.kick().unwrap();
                assert!(finish(&mut engine, 4).iter().all(|(_, result)| *result == Ok(4096)));
            }
            assert_eq!(one(&mut engine, Operation::Flush, Pages::none()).1, Ok(0), "{name}");
        }
    }
}

#[test]
fn many_at_once_keep_their_places() {
    for folder in folders() {
        for (name, _image, medium) in media(folder.path()) {
            let mut engine = medium.engine::<Pages>(0, 32).unwrap();
            for round in 0..3_u64 {
                let content = |at: u64| vec![(at * 3 + round) as u8; 8192];
                for batch in 0..4_u64 {
                    for at in batch * 32..(batch + 1) * 32 {
                        let held = Pages::new(&[512, 4096, 3584], &content(at));
                        let operation = Operation::Write { offset: at * 8192 };
                        assert!(engine.submit(operation, held).is_ok(), "{name}");
                    }
                    for (_, result) in finish(&mut engine, 32) {
                        assert_eq!(result, Ok(8192), "{name}");
                    }
                }
                for at in 0..32_u64 {
                    let held = Pages::new(&[8192], &[]);
                    let operation = Operation::Read { offset: (at * 4 + round) * 8192 };
                    assert!(engine.submit(operation, held).is_ok(), "{name}");
                }
                // In whatever order they finish, each of them once.
                let mut read: Vec<_> =
                    finish(&mut engine, 32).iter().map(|(held, _)| held.bytes()).collect();
                let mut want: Vec<_> = (0..32).map(|at| content(at * 4 + round)).collect();
                read.sort();
                want.sort();
                assert!(read == want, "{name}");
            }
        }
    }
}

#[test]
fn registered_memory_is_used_and_let_go_of() {
    for folder in folders() {
        for (name, _image, medium) in media(folder.path()) {
            let mut engine = medium.engine::<Pages>(0, 4).unwrap();
            let bytes: Vec<u8> = (0..8192_u32).map(|at| (at / 9) as u8).collect();
            let mut held = Pages::new(&[4096, 512, 3584], &bytes);
            let (base, len) = held.registered(7);
            // Where it gains nothing the engine says so, and takes no notice of the name.
            let gains = engine.register(7, base, len);
            assert!(!engine.register(u16::MAX, base, len), "{name}: beyond every table");
            let (held, result) = one(&mut engine, Operation::Write { offset: 4096 }, held);
            assert_eq!(result, Ok(8192), "{name}, registered: {gains}");
            let (held, result) = one(&mut engine, Operation::Read { offset: 8192 }, held);
            assert_eq!(result, Ok(8192), "{name}, registered: {gains}");
            assert!(held.bytes()[..4096] == bytes[4096..], "{name}");
            assert_eq!(engine.register(7, std::ptr::null_mut(), 0), gains, "{name}");
        }
    }
}

#[test]
fn waiting_ends_with_the_event_and_with_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut media = media(folder.path());
    media.push(("null".into(), None, Medium::Null(Geometry::new(SIZE, 512))));
    for (name, _image, medium) in media {
        let mut engine = medium.engine::<Pages>(0, 4).unwrap();
        let (quiet, _kept) = std::io::pipe().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let start = Instant::now();
        let brief = Some(Duration::from_millis(20));
        loop {
            // It may wake early, but it must not claim that there was something.
            let woken = engine.wait(&[quiet.as_fd(), reader.as_fd()], brief).unwrap();
            assert!(!woken.watched && !woken.finished, "{name}");
            if start.elapsed() >= Duration::from_millis(20) {
                break;
            }
            assert!(start.elapsed() < DEADLINE);
        }
        std::io::Write::write_all(&mut writer, b"x").unwrap();
        // Unread, it is reported each time.
        for _ in 0..3 {
            while !engine.wait(&[quiet.as_fd(), reader.as_fd()], None).unwrap().watched {
                assert!(start.elapsed() < DEADLINE, "{name}");
            }
        }
        std::io::Read::read_exact(&mut reader, &mut [0]).unwrap();
        // What was taken on begins without a kick, and its end ends the wait.
        assert!(engine.submit(Operation::Flush, Pages::none()).is_ok());
        let mut finished = Vec::new();
        while finished.is_empty() {
            assert!(start.elapsed() < DEADLINE, "{name}");
            engine.wait(&[quiet.as_fd(), reader.as_fd()], None).unwrap();
            engine.finished(&mut finished).unwrap();
        }
    }
}

#[test]
fn null_takes_everything_and_touches_nothing() {
    let medium = Medium::Null(Geometry::new(SIZE, 512));
    let mut engine = medium.engine::<Pages>(3, 2).unwrap();
    let held = Pages::new(&[512, 1024], &[7; 1536]);
    let (held, result) = one(&mut engine, Operation::Read { offset: 0 }, held);
    assert_eq!((result, held.bytes()), (Ok(1536), vec![7; 1536]));
    let discard = Operation::Discard { offset: 0, len: 512, secure: true };
    assert_eq!(one(&mut engine, discard, held).1, Ok(0));
    assert_eq!(engine.name(), "null");
}

#[test]
fn memory_refuses_what_lies_beyond_it_and_forgets_what_is_discarded() {
    for size in [0, 513, 1 << 50] {
        assert!(Disk::new(size, 512).is_err(), "{size}");
    }
    assert!(Disk::new(512, 1024).is_err());
    // Larger than a region's table, and touched at both ends.
    let size = 3_u64 << 30;
    let medium = Medium::Memory(Arc::new(Disk::new(size, 4096).unwrap()));
    let mut engine = medium.engine::<Pages>(0, 2).unwrap();
    for offset in [0, size - 4096] {
        let held = Pages::new(&[4096], &[9; 4096]);
        assert_eq!(one(&mut engine, Operation::Write { offset }, held).1, Ok(4096));
    }
    for offset in [size, size - 512, u64::MAX - 511] {
        let held = Pages::new(&[4096], &[]);
        assert_eq!(one(&mut engine, Operation::Read { offset }, held).1, Err(libc::EIO));
    }
    for (secure, len) in [(false, size - 512), (true, size)] {
        let discard = Operation::Discard { offset: 0, len, secure };
        assert_eq!(one(&mut engine, discard, Pages::none()).1, Ok(0));
        let read = Operation::Read { offset: size - 4096 };
        let (held, _) = one(&mut engine, read, Pages::new(&[4096], &[]));
        let kept = if secure { 0 } else { 512 };
        assert!(held.bytes()[..4096 - kept].iter().all(|byte| *byte == 0));
        assert!(held.bytes()[4096 - kept..].iter().all(|byte| *byte == 9));
    }
}

#[test]
fn zeroes_keep_their_place_unless_they_need_not() {
    let (mut told, mut written) = (0, 0);
    for folder in folders() {
        for (name, image, medium) in media(folder.path()) {
            let Some(image) = image else { continue };
            let mut engine = medium.engine::<Pages>(0, 8).unwrap();
            let blocks = || {
                let files = std::fs::read_dir(folder.path()).unwrap();
                files.map(|file| file.unwrap().metadata().unwrap().blocks()).sum::<u64>()
            };
            let empty = blocks();
            let held = Pages::new(&[SIZE as usize], &vec![9; SIZE as usize]);
            let (held, _) = one(&mut engine, Operation::Write { offset: 0 }, held);
            assert_eq!(one(&mut engine, Operation::Flush, Pages::none()).1, Ok(0), "{name}");
            let full = blocks();
            assert!(full >= empty + SIZE / 512, "{name}: {full} after {empty}");
            let zero = |unmap| Operation::Zero { offset: 0, len: SIZE, unmap };
            // Several at once, so that whoever does it does it for all of them.
            for _ in 0..3 {
                assert!(engine.submit(zero(false), Pages::none()).is_ok(), "{name}");
            }
            let all = finish(&mut engine, 3);
            assert!(all.iter().all(|(_, result)| *result == Ok(0)), "{name}");
            assert_eq!(one(&mut engine, Operation::Flush, Pages::none()).1, Ok(0), "{name}");
            assert!(blocks() >= empty + SIZE / 512, "{name}: zeroes lost their place");
            let (held, _) = one(&mut engine, Operation::Read { offset: 0 }, held);
            assert!(held.bytes().iter().all(|byte| *byte == 0), "{name}");
            match image.media().geometry().zeroes_are_written {
                true => written += 1,
                false => told += 1,
            }
            let (_, result) = one(&mut engine, zero(true), Pages::none());
            assert_eq!(result, Ok(0), "{name}");
            assert_eq!(one(&mut engine, Operation::Flush, Pages::none()).1, Ok(0), "{name}");
            assert!(blocks() < full, "{name}: nothing was freed: {} of {full}", blocks());
        }
    }
    // What lies in memory has to be written; elsewhere that is the file system's to say.
    assert!(written >= 4 || told + written == 4, "{told} told, {written} written");
}
