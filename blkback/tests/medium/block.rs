//! Block devices, over loop devices: as root only.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use blkback::engine::{Choice, Engine, Medium, Operation};
use blkback::image::{Direct, Image, Options, Transfers};

use crate::buffers::Pages;
use crate::drive::{finish, one};
use crate::host::Loop;

const SIZE: u64 = 8 << 20;

/// Does `test` with every way to move bytes to a device of `sector` bytes, and with its file.
fn each_way(sector: u32, test: impl Fn(&str, Medium, &File)) {
    for choice in [Choice::Uring, Choice::Blocking] {
        for direct in [Direct::On, Direct::Off] {
            let home = tempfile::tempdir().unwrap();
            let backing = home.path().join("backing");
            let file =
                File::options().read(true).write(true).create_new(true).open(&backing).unwrap();
            file.set_len(SIZE).unwrap();
            let Some(device) = Loop::new(&backing, sector) else { return };
            let mut options = Options::new(&device.0);
            options.direct = direct;
            let image = Image::open(&options).unwrap();
            let wanted = matches!(image.media().transfers(), Transfers::Direct { .. });
            assert_eq!(wanted, direct == Direct::On);
            let name = format!("{choice:?}, direct {direct}, sectors of {sector}");
            test(&name, Medium::Image(Arc::clone(image.media()), choice), &file);
            drop(image);
            drop(device);
        }
    }
}

#[test]
fn requests_cut_in_any_way_reach_the_device() {
    for sector in [512_u32, 4096] {
        each_way(sector, |name, medium, file| {
            let mut engine = medium.engine::<Pages>(0, 8).unwrap();
            // Whole sectors, in segments of 512-byte units that are none.
            for lens in [vec![4096], vec![512, 3584], vec![1536, 2048, 512, 4096], vec![512; 16]] {
                let total = lens.iter().sum::<usize>();
                let bytes: Vec<u8> = (0..total).map(|at| (at / 5 + lens.len()) as u8).collect();
                let offset = 64 * 1024;
                let held = Pages::new(&lens, &bytes);
                let (_, result) = one(&mut engine, Operation::Write { offset }, held);
                assert_eq!(result, Ok(total as u64), "{name}: {lens:?}");
                let (held, result) =
                    one(&mut engine, Operation::Read { offset }, Pages::new(&lens, &[]));
                assert_eq!(result, Ok(total as u64), "{name}: {lens:?}");
                assert!(held.bytes() == bytes, "{name}: {lens:?}");
                assert_eq!(one(&mut engine, Operation::Flush, Pages::none()).1, Ok(0), "{name}");
                let mut stored = vec![0; total];
                file.read_exact_at(&mut stored, offset).unwrap();
                assert!(stored == bytes, "{name}: {lens:?}");
            }
        });
    }
}

#[test]
fn discards_free_what_is_behind_the_device() {
    each_way(512, |name, medium, file| {
        let mut engine = medium.engine::<Pages>(0, 16).unwrap();
        let held = Pages::new(&[1 << 20], &[1; 1 << 20]);
        let (held, result) = one(&mut engine, Operation::Write { offset: 0 }, held);
        assert_eq!(result, Ok(1 << 20), "{name}");
        assert_eq!(one(&mut engine, Operation::Flush, Pages::none()).1, Ok(0), "{name}");
        file.sync_all().unwrap();
        assert!(file.metadata().unwrap().blocks() >= 2048, "{name}");
        // Several at once, and a read among them.
        for at in 0..8 {
            let discard = Operation::Discard { offset: at << 17, len: 1 << 17, secure: false };
            assert!(engine.submit(discard, Pages::none()).is_ok());
        }
        assert!(engine.submit(Operation::Read { offset: 2 << 20 }, held).is_ok());
        assert_eq!(engine.under_way(), 9);
        for (held, result) in finish(&mut engine, 9) {
            assert_eq!(result, Ok(held.bytes().len() as u64), "{name}");
        }
        let start = std::time::Instant::now();
        while file.metadata().unwrap().blocks() > 64 {
            assert!(start.elapsed() < crate::drive::DEADLINE, "{name}: the holes are not punched");
            file.sync_all().unwrap();
        }
    });
}

#[test]
fn a_device_zeroes_what_it_is_told_to() {
    for sector in [512, 4096] {
        each_way(sector, |name, medium, file| {
            let mut engine = medium.engine::<Pages>(0, 16).unwrap();
            let geometry = medium.geometry();
            assert_eq!(geometry.hints.alignment, 0, "{name}");
            assert!(geometry.hints.least >= sector, "{name}: {:?}", geometry.hints);
            for unmap in [false, true] {
                let held = Pages::new(&[1 << 20], &[1; 1 << 20]);
                let (_, result) = one(&mut engine, Operation::Write { offset: 0 }, held);
                assert_eq!(result, Ok(1 << 20), "{name}");
                let (offset, len) = (4096 * 3, 4096 * 100);
                let zero = Operation::Zero { offset, len, unmap };
                assert_eq!(one(&mut engine, zero, Pages::none()).1, Ok(0), "{name}");
                let (held, _) =
                    one(&mut engine, Operation::Read { offset: 0 }, Pages::new(&[1 << 20], &[]));
                let range = offset as usize..(offset + len) as usize;
                let right = |(at, byte): (usize, &u8)| *byte == u8::from(!range.contains(&at));
                assert!(held.bytes().iter().enumerate().all(right), "{name}, unmap {unmap}");
                assert_eq!(one(&mut engine, Operation::Flush, Pages::none()).1, Ok(0), "{name}");
                let mut stored = vec![1; len as usize];
                file.read_exact_at(&mut stored, offset).unwrap();
                assert!(stored.iter().all(|byte| *byte == 0), "{name}: behind the device");
            }
            let beyond = Operation::Zero { offset: SIZE, len: 4096, unmap: false };
            assert!(one(&mut engine, beyond, Pages::none()).1.is_err(), "{name}");
        });
    }
}

#[test]
fn secure_erase_and_ends_of_the_device_are_answered() {
    each_way(512, |name, medium, _file| {
        let mut engine = medium.engine::<Pages>(0, 4).unwrap();
        // A loop device has no secure erase: the geometry says so, and so does the device.
        let limits = medium.geometry().discard.unwrap();
        assert!(!limits.secure);
        for _ in 0..3 {
            let erase = Operation::Discard { offset: 0, len: 4096, secure: true };
            let (_, result) = one(&mut engine, erase, Pages::none());
            assert_eq!(result, Err(libc::EOPNOTSUPP), "{name}");
        }
        let beyond = Operation::Discard { offset: SIZE, len: 4096, secure: false };
        assert!(one(&mut engine, beyond, Pages::none()).1.is_err(), "{name}");
        let beyond = Operation::Read { offset: SIZE };
        let (_, result) = one(&mut engine, beyond, Pages::new(&[4096], &[]));
        assert!(result.is_err(), "{name}");
        // One that is under way when the engine goes is finished first.
        let last = Operation::Discard { offset: 0, len: SIZE, secure: true };
        assert!(engine.submit(last, Pages::none()).is_ok());
    });
}
