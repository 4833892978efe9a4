//! A block queue whose frontend does anything at all: every request that is taken is answered
//! exactly once, and nothing outside the disk and the granted pages is reached.
#![no_main]

use std::sync::Arc;

use blkback::acquire::Grants;
use blkback::engine::memory::{Disk, Memory};
use blkback::policy::acquire::Reach;
use blkback::queue::{Control, Ended, Queue, Serving};
use blkback::stats::Stats;
use blkback::validate::Rules;
use domkit_fuzz::bytes::Bytes;
use domkit_fuzz::disk::{SIZE, Watched};
use domkit_fuzz::frontend::{Audited, Frontend, SECTORS, attach, begin};
use domkit_fuzz::memory::Pages;
use domkit_fuzz::platform::{Bell, Guest};
use hypervisor::{DomId, EventPort};
use ring::Waiting;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut script = Bytes::new(bytes);
    let how = script.byte();
    let ring = Pages::new(1 << (how & 1));
    begin(&ring, &mut script);
    let disk = Arc::new(Disk::new(SIZE, if how & 2 == 0 { 512 } else { 4096 }).unwrap());
    let mut rules = Rules::new();
    rules.sector_size = disk.geometry().sector_size;
    rules.read_only = how & 0x1C == 0x1C;
    (rules.discard, rules.secure_discard) = (how & 4 == 0, how & 8 == 0);
    let mut serving = Serving::new(rules, SECTORS);
    serving.waiting = Waiting::Sleep;
    let (serving, control) = (Arc::new(serving), Control::new().unwrap());
    let reach = match how >> 6 {
        0 => Reach::Map,
        1 => Reach::Copy { pages: 4 },
        2 => Reach::Copy { pages: 64 },
        _ => Reach::Persistent { pages: 3 },
    };

    let (guest, peer, bell) = (Guest::default(), DomId::new(1).unwrap(), Bell::new(EventPort(1)));
    let front = Frontend::new(script, &guest, &ring, bell.rope(), &control, &serving);
    let requests = Audited::new(attach(&ring, peer).with_indirect(256), &front);
    let depth = if how & 0x20 == 0 { 64 } else { 2 };
    let engine = Watched::new(Memory::new(disk, depth), &guest, &front);
    let memory = Grants::new(guest.clone(), peer, reach);
    let stats = Arc::new(Stats::default());
    let queue = Queue::new((requests, memory, engine, bell), serving, control, Arc::clone(&stats));
    let ended = queue.run();

    assert_eq!(front.owed(), 0, "requests were forgotten: {ended:?}");
    assert_eq!(guest.mapped(), 0, "pages stay mapped: {ended:?}");
    guest.check();
    let counted = stats.snapshot();
    assert_eq!(counted.requests() + counted.errors(), front.answered(), "{counted:?}");
    assert!(matches!(ended, Ended::Drained | Ended::Fault(_)), "{ended:?}");
});
