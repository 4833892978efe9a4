//! A virtio driver and the device's side of its queue, in one process; and drivers that lie.

mod pages;

use std::collections::{BTreeMap, VecDeque};

use hypervisor::memory::{Memory, Outside, Ram};
use pages::Pages;
use proptest::prelude::*;
use ring::split::{
    Area, Buffer, Device, Fault, Head, Inflight, available_bytes, descriptor_bytes, inflight_bytes,
    used_bytes,
};

const SIZE: u16 = 8;
/// Where the parts lie in the pages; the machine's addresses are the same.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 4096;
const USED: usize = 2 * 4096;
const TABLES: usize = 3 * 4096;
const NOTES: usize = 4 * 4096;
const PAGES: usize = 5;

/// The machine's memory.
#[derive(Clone)]
struct Machine(Pages);

impl Ram for Machine {
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), Outside> {
        let outside = Outside { at, len: into.len() as u64 };
        self.0.read_at(usize::try_from(at).map_err(|_| outside)?, into).map_err(|_| outside)
    }

    fn write(&self, at: u64, from: &[u8]) -> Result<(), Outside> {
        let outside = Outside { at, len: from.len() as u64 };
        self.0.write_at(usize::try_from(at).map_err(|_| outside)?, from).map_err(|_| outside)
    }
}

fn area(pages: &Pages, offset: usize, len: usize) -> Area<Pages> {
    Area::new(pages.clone(), offset, len, 2).unwrap()
}

fn device(pages: &Pages, by_index: bool, taken: u16) -> Result<Device<Pages>, Fault> {
    let ends = (
        area(pages, DESCRIPTORS, descriptor_bytes(SIZE)),
        area(pages, AVAILABLE, available_bytes(SIZE)),
        area(pages, USED, used_bytes(SIZE)),
    );
    Device::new(u32::from(SIZE), ends, by_index, taken)
}

fn notes(pages: &Pages, used: u16) -> (Inflight<Pages>, Option<Vec<u16>>) {
    Inflight::open(area(pages, NOTES, inflight_bytes(SIZE)), SIZE, used).unwrap()
}

/// A driver that keeps to the rules, and can be made not to.
struct Driver {
    pages: Pages,
    free: Vec<u16>,
    available: u16,
    used: u16,
    by_index: bool,
    /// By head: the descriptors of the chain.
    chains: BTreeMap<u16, Vec<u16>>,
}

impl Driver {
    fn new(by_index: bool) -> Self {
        let pages = Pages::new(PAGES);
        let free = (0..SIZE).collect();
        Self { pages, free, available: 0, used: 0, by_index, chains: BTreeMap::new() }
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.pages.write_at(at, bytes).unwrap();
    }

    fn half(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.pages.read_at(at, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn describe(&self, table: usize, number: u16, (at, len): (u64, u32), flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + usize::from(number) * 16, &bytes);
    }

    /// Makes a chain of `buffers` available, if there is room; with `indirect`, by a table.
    fn offer(&mut self, buffers: &[Buffer], indirect: bool) -> Option<u16> {
        let needed = if indirect { 1 } else { buffers.len() };
        if self.free.len() < needed {
            return None;
        }
        let own = self.free.split_off(self.free.len() - needed);
        let head = own[0];
        let (table, numbers) = if indirect {
            let table = TABLES + usize::from(head) * 256;
            let bytes = u32::try_from(buffers.len() * 16).unwrap();
            self.describe(DESCRIPTORS, head, (table as u64, bytes), 4, 0);
            (table, (0..u16::try_from(buffers.len()).unwrap()).collect())
        } else {
            (DESCRIPTORS, own.clone())
        };
        for (n, buffer) in buffers.iter().enumerate() {
            let next = numbers.get(n + 1).copied();
            let flags = u16::from(next.is_some()) | u16::from(buffer.writable) << 1;
            let place = (buffer.at, buffer.len);
            self.describe(table, numbers[n], place, flags, next.unwrap_or(0));
        }
        self.chains.insert(head, own);
        self.publish(head);
        Some(head)
    }

    fn publish(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + usize::from(self.available % SIZE) * 2;
        self.put(slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.put(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// Asks to be told of the next that is used.
    fn arm(&self) {
        if self.by_index {
            self.put(AVAILABLE + 4 + usize::from(SIZE) * 2, &self.used.to_le_bytes());
        }
    }

    /// The next that was used: its head and length.
    fn take(&mut self) -> Option<(u16, u32)> {
        if self.half(USED + 2) == self.used {
            return None;
        }
        let mut bytes = [0; 8];
        self.pages.read_at(USED + 4 + usize::from(self.used % SIZE) * 8, &mut bytes).unwrap();
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(u32::from_le_bytes(bytes[..4].try_into().unwrap())).unwrap();
        let own = self.chains.remove(&head).expect("used what was not made available");
        self.free.extend(own);
        Some((head, u32::from_le_bytes(bytes[4..].try_into().unwrap())))
    }
}

fn buffers(seed: u32, count: usize) -> Vec<Buffer> {
    let reads = count / 2;
    let each = |n: usize| Buffer {
        at: u64::from(seed) << 20 | (n as u64) << 12,
        len: seed % 5000 + u32::try_from(n).unwrap(),
        writable: n >= reads,
    };
    (0..count).map(each).collect()
}

#[derive(Clone, Debug)]
enum Move {
    Offer {
        count: usize,
        indirect: bool,
    },
    Take,
    GiveBack {
        which: prop::sample::Index,
        len: u32,
    },
    Publish,
    Look,
    /// The device's process is killed, and the next one goes on.
    Kill,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (1..5_usize, any::<bool>()).prop_map(|(count, indirect)| Move::Offer { count, indirect }),
        4 => Just(Move::Take),
        4 => (any::<prop::sample::Index>(), any::<u32>())
            .prop_map(|(which, len)| Move::GiveBack { which, len }),
        2 => Just(Move::Publish),
        2 => Just(Move::Look),
        1 => Just(Move::Kill),
    ];
    prop::collection::vec(one, 0..200)
}

proptest! {
    /// Chains arrive as they were made and in order, answers go to whom they belong, nothing is lost or done
    /// twice by a kill, and whoever waits is told.
    #[test]
    fn two_ends_agree(moves in moves(), by_index in any::<bool>()) {
        let mut driver = Driver::new(by_index);
        let machine = Machine(driver.pages.clone());
        let mut device = device(&driver.pages, by_index, 0).unwrap();
        let (mut inflight, fresh) = notes(&driver.pages, 0);
        prop_assert!(fresh.is_none());
        let mut offered: VecDeque<(u16, Vec<Buffer>)> = VecDeque::new();
        let mut taken: Vec<(Head, Vec<Buffer>)> = Vec::new();
        let mut written: BTreeMap<u16, (u32, Vec<Buffer>)> = BTreeMap::new();
        let mut shown: VecDeque<(u16, u32)> = VecDeque::new();
        let mut unshown: Vec<(u16, u32)> = Vec::new();
        let (mut seed, mut waits) = (0, false);
        for step in moves {
            match step {
                Move::Offer { count, indirect } => {
                    seed += 1;
                    let chain = buffers(seed, count);
                    if let Some(head) = driver.offer(&chain, indirect) {
                        offered.push_back((head, chain));
                    }
                }
                Move::Take => match device.take().unwrap() {
                    Some(head) => {
                        inflight.take(head.number()).unwrap();
                        let (expected, chain) = offered.pop_front().expect("more than was offered");
                        prop_assert_eq!(head.number(), expected);
                        let walked: Result<Vec<_>, _> = device.chain(&head, &machine).collect();
                        prop_assert_eq!(walked.unwrap(), chain.clone());
                        taken.push((head, chain));
                    }
                    None => prop_assert!(offered.is_empty()),
                },
                Move::GiveBack { which, len } => {
                    if !taken.is_empty() {
                        let (head, chain) = taken.swap_remove(which.index(taken.len()));
                        let number = head.number();
                        inflight.give_back(number);
                        device.give_back(head, len);
                        unshown.push((number, len));
                        written.insert(number, (len, chain));
                    }
                }
                Move::Publish => {
                    let any = !unshown.is_empty();
                    let told = device.publish().is_needed();
                    inflight.published(device.published());
                    shown.extend(unshown.drain(..));
                    written.clear();
                    prop_assert!(told || !(any && waits), "one that waits is told");
                    prop_assert!(any || !told, "nobody is told of nothing");
                    waits &= !told;
                }
                Move::Look => {
                    while let Some(used) = driver.take() {
                        prop_assert_eq!(Some(used), shown.pop_front());
                    }
                    prop_assert!(shown.is_empty());
                    driver.arm();
                    waits = true;
                }
                Move::Kill => {
                    let mut owed: Vec<u16> = taken.iter().map(|(head, _)| head.number()).collect();
                    owed.extend(written.keys());
                    let chains: BTreeMap<u16, Vec<Buffer>> = taken
                        .drain(..)
                        .map(|(head, chain)| (head.number(), (head, chain)))
                        .map(|(number, (head, chain))| { head.abandon(); (number, chain) })
                        .chain(std::mem::take(&mut written).into_iter().map(|(n, (_, c))| (n, c)))
                        .collect();
                    unshown.clear();
                    let used = driver.half(USED + 2);
                    let (next, found) = notes(&driver.pages, used);
                    inflight = next;
                    let found = found.expect("there are notes");
                    let count = u16::try_from(found.len()).unwrap();
                    device = self::device(&driver.pages, by_index, used.wrapping_add(count)).unwrap();
                    let mut sorted = found.clone();
                    sorted.sort_unstable();
                    owed.sort_unstable();
                    prop_assert_eq!(sorted, owed);
                    for head in found {
                        let chain = chains[&head].clone();
                        taken.push((device.owed(head).unwrap(), chain));
                    }
                }
            }
        }
        for (head, _) in taken {
            head.abandon();
        }
    }

    /// Whatever lies in its memory, a device ends in a fault or in bounded work.
    #[test]
    fn nothing_that_a_driver_writes_does_harm(
        bytes in prop::collection::vec(any::<u8>(), PAGES * 4096),
        small in any::<bool>(),
        by_index in any::<bool>(),
    ) {
        let pages = Pages::new(PAGES);
        pages.write_at(0, &bytes).unwrap();
        if small {
            // Heads and successors that there are, so that chains go on.
            for n in 0..usize::from(SIZE) {
                pages.write_at(n * 16 + 12, &[bytes[n] & 3, 0, bytes[n + 8] & 7, 0]).unwrap();
                pages.write_at(AVAILABLE + 4 + n * 2, &[bytes[n + 16] & 7, 0]).unwrap();
            }
            pages.write_at(AVAILABLE, &[0, 0, SIZE as u8, 0]).unwrap();
            pages.write_at(USED, &[0; 4]).unwrap();
        }
        let machine = Machine(pages.clone());
        let Ok(mut device) = device(&pages, by_index, 0) else { return Ok(()) };
        for _ in 0..100 {
            let Ok(Some(head)) = device.take() else { break };
            let walked = device.chain(&head, &machine).count();
            prop_assert!(walked <= 1026);
            device.give_back(head, 0);
            let _ = device.publish();
        }
    }
}

/// A device whose driver made `flags`, `next` and so on of descriptor 0 and offered it.
fn walk(prepare: impl Fn(&Driver)) -> Result<Vec<Buffer>, Fault> {
    let mut driver = Driver::new(false);
    prepare(&driver);
    driver.publish(0);
    let mut device = device(&driver.pages, false, 0).unwrap();
    let head = device.take().unwrap().unwrap();
    let walked = device.chain(&head, &Machine(driver.pages.clone())).collect();
    head.abandon();
    walked
}

#[test]
fn rules_that_drivers_break_have_names() {
    let loops = walk(|driver| driver.describe(DESCRIPTORS, 0, (0, 1), 1, 0));
    assert_eq!(loops, Err(Fault::Loop { most: 8 }));
    let outside = walk(|driver| driver.describe(DESCRIPTORS, 0, (0, 1), 1, SIZE));
    assert_eq!(outside, Err(Fault::Next { next: SIZE, size: 8 }));
    let order = walk(|driver| {
        driver.describe(DESCRIPTORS, 0, (0, 1), 3, 1);
        driver.describe(DESCRIPTORS, 1, (0, 1), 0, 0);
    });
    assert_eq!(order, Err(Fault::Order));
    for len in [0, 15, 17] {
        let table = walk(|driver| driver.describe(DESCRIPTORS, 0, (TABLES as u64, len), 4, 0));
        assert_eq!(table, Err(Fault::IndirectLength { len }));
    }
    let with_next = walk(|driver| driver.describe(DESCRIPTORS, 0, (TABLES as u64, 16), 5, 1));
    assert_eq!(with_next, Err(Fault::Indirect { flags: 5 }));
    let nested = walk(|driver| {
        driver.describe(DESCRIPTORS, 0, (TABLES as u64, 32), 4, 0);
        driver.describe(TABLES, 0, (TABLES as u64, 16), 4, 0);
    });
    assert_eq!(nested, Err(Fault::Indirect { flags: 4 }));
    let nowhere = walk(|driver| driver.describe(DESCRIPTORS, 0, (1 << 40, 16), 4, 0));
    assert_eq!(nowhere, Err(Fault::Outside { at: 1 << 40, len: 16 }));
    let circle = walk(|driver| {
        driver.describe(DESCRIPTORS, 0, (TABLES as u64, 32), 4, 0);
        driver.describe(TABLES, 0, (0, 1), 1, 1);
        driver.describe(TABLES, 1, (0, 1), 1, 0);
    });
    assert_eq!(circle, Err(Fault::Loop { most: 2 }));
}

#[test]
fn an_index_that_cannot_be_is_a_fault() {
    let mut driver = Driver::new(false);
    driver.put(AVAILABLE + 2, &(SIZE + 1).to_le_bytes());
    let index = SIZE + 1;
    let fault = Fault::AvailableIndex { index, taken: 0, used: 0, size: SIZE };
    assert_eq!(device(&driver.pages, false, 0).err(), Some(fault));
    driver.put(AVAILABLE + 2, &[0, 0]);
    let mut one = device(&driver.pages, false, 0).unwrap();
    driver.publish(SIZE);
    assert_eq!(one.take().unwrap_err(), Fault::Head { head: SIZE, size: SIZE });
    for size in [0, 3, 65536] {
        let pages = Pages::new(PAGES);
        let part = || area(&pages, 0, pages.len());
        let made = Device::new(size, (part(), part(), part()), false, 0);
        assert_eq!(made.err(), Some(Fault::Size { size }));
    }
}

#[test]
fn a_head_that_is_in_flight_is_not_taken_again() {
    let pages = Pages::new(PAGES);
    let (mut inflight, _) = notes(&pages, 0);
    inflight.take(3).unwrap();
    assert_eq!(inflight.take(3), Err(Fault::HeadTwice { head: 3 }));
}
