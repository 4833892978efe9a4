//! Requests of any size over rings of any kind, against a model.

use blkfront::{Config, Request};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::backend::{Buffer, Features, bytes, scene, zeroes};

/// Sectors on the disk.
const SECTORS: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Asked {
    write: bool,
    sector: usize,
    sectors: usize,
    seed: u8,
}

fn asked() -> impl Strategy<Value = Asked> {
    (any::<bool>(), 0..SECTORS, prop_oneof![1..32_usize, 1..SECTORS], any::<u8>()).prop_map(
        |(write, sector, sectors, seed)| Asked {
            write,
            sector,
            sectors: sectors.min(SECTORS - sector),
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_is_asked_is_done_whole(
        requests in vec(asked(), 1..40),
        indirect in prop_oneof![Just(0_u32), Just(12), Just(32), Just(256)],
        ring_order in 0..3_u32,
        pool_pages in prop_oneof![Just(1_usize), Just(3), Just(14), Just(300)],
        persistent: bool,
        together in 1..8_usize,
    ) {
        let features = Features { indirect, ring_order, persistent, ..Features::default() };
        let mut config = Config::default();
        config.pool_pages = pool_pages;
        let (_machine, _guest, mut disk, mut backend) = scene(SECTORS * 512, features, config);
        let mut model = vec![0_u8; SECTORS * 512];
        for batch in requests.chunks(together) {
            // What overlaps is not ordered, so each batch keeps to what does not.
            let mut free = vec![true; SECTORS];
            let mut expected: Vec<(u64, Option<Vec<u8>>)> = Vec::new();
            for (tag, asked) in (0_u64..).zip(batch) {
                let range = asked.sector..asked.sector + asked.sectors;
                if !free[range.clone()].iter().all(|free| *free) {
                    continue;
                }
                free[range.clone()].fill(false);
                let place = range.start * 512..range.end * 512;
                let offset = place.start as u64;
                let request: Request<Buffer> = if asked.write {
                    let data = bytes(place.len(), asked.seed);
                    model[place.clone()].copy_from_slice(&data);
                    expected.push((tag, None));
                    Request::write(offset, data, tag)
                } else {
                    expected.push((tag, Some(model[place.clone()].to_vec())));
                    Request::read(offset, zeroes(place.len()), tag)
                };
                prop_assert!(disk.queues()[0].submit(request).is_ok());
            }
            let mut rounds = 0;
            while !expected.is_empty() {
                disk.poll().unwrap();
                backend.poll();
                while let Some(done) = disk.queues()[0].complete() {
                    prop_assert_eq!(done.result, Ok(()));
                    let place = expected.iter().position(|(tag, _)| *tag == done.request.tag).unwrap();
                    if let (_, Some(data)) = expected.swap_remove(place) {
                        prop_assert_eq!(&*done.request.buffer, &data);
                    }
                }
                rounds += 1;
                prop_assert!(rounds < 100_000, "it goes on for ever");
            }
        }
        prop_assert_eq!(&backend.disk, &model);
    }
}
