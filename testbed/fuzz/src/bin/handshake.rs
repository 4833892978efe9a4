//! A block device's handshake whose frontend, and whose toolstack, write anything at any time: the
//! backend always comes to rest, takes nothing that it did not offer, and holds nothing of a
//! frontend that is gone.
#![no_main]

use std::cell::Cell;

use blkback::connect::Connection;
use blkback::connect::xenbus::{self, Discard, Disk, Offer};
use blkback::device::{KIND, Message};
use domkit_fuzz::bytes::Bytes;
use domkit_fuzz::memory::Granted;
use domkit_fuzz::platform::{Bell, Guest};
use domkit_fuzz::store::Keys;
use hypervisor::backend::{Backend, History, Key, Kind, Mailbox, Running, Service, Settled, Waker};
use hypervisor::memory::Memory as _;
use hypervisor::store::{Store, Transaction};
use hypervisor::xenbus::{End, Pair, Seat, State};
use hypervisor::{DomId, Error, HostError, PAGE_SIZE, PeerFault};

const OFFER: Offer = Offer { queues: 3, ring_page_order: 2, persistent: true };

/// What a frontend writes, and a little more.
const NAMES: [&str; 24] = [
    "state",
    "ring-ref",
    "ring-ref0",
    "ring-ref1",
    "ring-ref2",
    "ring-ref3",
    "event-channel",
    "ring-page-order",
    "num-ring-pages",
    "multi-queue-num-queues",
    "protocol",
    "feature-persistent",
    "queue-0/ring-ref",
    "queue-0/ring-ref0",
    "queue-0/event-channel",
    "queue-1/ring-ref",
    "queue-1/ring-ref1",
    "queue-1/event-channel",
    "queue-2/ring-ref",
    "queue-2/event-channel",
    "queue-3/ring-ref",
    "backend",
    "backend-id",
    "error",
];

/// What is worth writing there.
const VALUES: [&str; 24] = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "10",
    "15",
    "31",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "-1",
    "+1",
    "0x1",
    "",
    "x86_64-abi",
    "x86_32-abi",
];

struct Frontend(Cell<u8>);

struct Served {
    _connection: Connection<Granted, Bell>,
    fails: Cell<bool>,
    current: bool,
}

impl Running for Served {
    fn failed(&mut self) -> Option<Error> {
        let fault = || PeerFault::new(DomId::ZERO, "request_producer", 99).into();
        self.fails.take().then(fault)
    }

    fn wake(&self) {}

    fn reread<S: Store + ?Sized>(&mut self, _: &Seat, _: &S) -> Result<(), Error> {
        Ok(())
    }

    fn reconfigure<S: Store + ?Sized>(&mut self, _: &Seat, _: &S) -> Result<(), Error> {
        Ok(())
    }

    fn is_current<S: Store + ?Sized>(&self, _: &Seat, _: &S) -> Result<bool, Error> {
        Ok(self.current)
    }

    fn finish(self) {}
}

impl Service<Guest> for Frontend {
    const KIND: &'static Kind = KIND;

    type Offer = Offer;
    type Running = Served;
    type Change = ();
    type Changed = ();

    fn connect<S: Store + ?Sized>(
        &self,
        domain: &Guest,
        seat: &Seat,
        store: &S,
        offer: &Offer,
        _: Waker,
    ) -> Result<Served, Error> {
        let transport = xenbus::read(seat, store, offer)?;
        let to = xenbus::connect(seat, domain, &transport, std::time::Duration::ZERO)?;
        let queues = to.queues.len();
        assert!((1..=OFFER.queues as usize).contains(&queues), "{queues} queues");
        for link in &to.queues {
            let pages = link.ring.len() / PAGE_SIZE;
            assert!(pages.is_power_of_two() && pages <= 1 << OFFER.ring_page_order, "{pages}");
        }
        let how = self.0.take();
        if how & 3 == 3 {
            return Err(HostError::new("start a thread", 11).into());
        }
        Ok(Served { _connection: to, fails: Cell::new(how & 3 == 2), current: how & 4 == 0 })
    }

    fn describe(&self, offer: &Offer) -> Vec<Key> {
        let discard = Some(Discard { granularity: 4096, alignment: 0, secure: true });
        let (sector_size, physical_sector_size) = (512, 4096);
        let (read_only, cdrom, removable) = (false, true, true);
        let disk = Disk {
            sectors: 99,
            sector_size,
            physical_sector_size,
            read_only,
            cdrom,
            removable,
            discard,
        };
        xenbus::describe(offer, &disk)
    }

    fn change(&self, (): ()) -> Result<(), Error> {
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut script = Bytes::new(bytes);
    let (front, back) = (DomId::new(7).unwrap(), DomId::new(3).unwrap());
    let (store, guest, service) = (Keys::default(), Guest::default(), Frontend(Cell::new(0)));
    let pair = Pair::new("vbd", 51712, front, back);
    pair.create(&store, &[], &[]).unwrap();
    let mailbox = Mailbox::<Message>::new().unwrap();
    let mut backend = Backend::new(&pair, OFFER, mailbox.waker(), History::default());
    while !script.is_over() {
        let what = script.byte();
        match what % 8 {
            // An orderly beginning, so that what follows meets a connected backend as well.
            0 => {
                for (key, value) in [("ring-ref", "8"), ("event-channel", "1"), ("state", "3")] {
                    store.set(&format!("{}/{key}", pair.front.directory), value.as_bytes());
                }
            }
            1..=4 => {
                let key = NAMES[usize::from(script.byte()) % NAMES.len()];
                let path = format!("{}/{key}", pair.front.directory);
                match script.byte() {
                    byte @ 0..200 => {
                        store.set(&path, VALUES[usize::from(byte) % VALUES.len()].as_bytes());
                    }
                    200..220 => store.clear(&path),
                    byte => store.set(&path, &script.some(usize::from(byte - 220))),
                }
            }
            5 => match script.byte() % 8 {
                0 => store.clear(&pair.front.directory),
                1 => store.clear(&pair.back.directory),
                2 => pair.create(&store, &[], &[]).unwrap(),
                3 => pair.ask_to_leave(&store).unwrap(),
                4 => {
                    let value = [script.byte()];
                    store.set(&format!("{}/state", pair.back.directory), &value);
                }
                5 => store.conflict(script.byte()),
                6 => service.0.set(script.byte()),
                _ => drop(pair.remove(&store, false).unwrap()),
            },
            _ => {}
        }
        if what & 0x80 == 0 {
            settle(&mut backend, &pair, &store, &guest, &service, &mailbox);
        }
    }
    store.clear(&pair.front.directory);
    settle(&mut backend, &pair, &store, &guest, &service, &mailbox);
    assert_eq!((guest.mapped(), guest.bound()), (0, 0), "held of a frontend that is gone");
    guest.check();
});

fn settle(
    backend: &mut Backend<Guest, Frontend>,
    pair: &Pair,
    store: &Keys,
    guest: &Guest,
    service: &Frontend,
    mailbox: &Mailbox<Message>,
) {
    store.only(Some(&pair.back.directory));
    // It may ask for another turn, and must come to rest when nobody else does anything.
    for turn in 0.. {
        let settled = backend.settle(guest, store, service).unwrap();
        let own = store.get(&format!("{}/state", pair.back.directory));
        let own = own.map_or(State::Unknown, |value| State::parse(&value));
        if settled == Settled::Over {
            assert!(matches!(own, State::Unknown | State::Closed), "over in {own}");
            assert_eq!((guest.mapped(), guest.bound()), (0, 0));
            break;
        }
        if !woken(mailbox) {
            break;
        }
        assert!(turn < 4, "it never comes to rest: {own}");
    }
    store.only(None);
    let peer = pair.seat(End::Back).peer_state(store).unwrap();
    if matches!(peer, State::Unknown | State::Closed | State::Initialising) {
        assert_eq!((guest.mapped(), guest.bound()), (0, 0), "held with a frontend in {peer}");
    }
    let own = pair.seat(End::Back).own_state(store, Transaction::NONE).unwrap();
    if matches!(own, State::Unknown | State::Closed | State::Initialising | State::InitWait) {
        assert_eq!((guest.mapped(), guest.bound()), (0, 0), "held in {own}");
    }
}

/// Whether it asked for another turn, once.
fn woken(mailbox: &Mailbox<Message>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let mut waited = [PollFd::new(mailbox.as_fd(), PollFlags::POLLIN)];
    // The fuzzer's own clock interrupts calls with a signal.
    let woken = loop {
        match poll(&mut waited, PollTimeout::ZERO) {
            Err(nix::errno::Errno::EINTR) => {}
            ready => break ready.unwrap() > 0,
        }
    };
    let _ = mailbox.take();
    woken
}
