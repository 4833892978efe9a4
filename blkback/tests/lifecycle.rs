//! A device's life against frontends that behave, that do not, and that die.
//!
//! A whole machine in one process: a broker, a store, a backend that serves an engine which keeps
//! nothing, and frontends that do no more than the handshake.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use blkback::connect::xenbus::Offer;
use blkback::device::{Disks, Manner, Message, Policy, Resize, order};
use blkback::engine::Medium;
use blkback::engine::memory::Disk;
use hypervisor::backend::{
    self, Board, Ended, History, Mailbox, Plan, Serving, Settled, Slot, Wanted,
};
use hypervisor::embedded::{Domain, EventChannel, Pages};
use hypervisor::event::{Channel, Events};
use hypervisor::memory::{Access, Granting};
use hypervisor::store::{Store, StoreError, Transaction};
use hypervisor::testing::Machine;
use hypervisor::xenbus::{End, Pair, Seat, State};
use hypervisor::{DomId, Error, GrantRef};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring::Front;
use ring::wire::blkif::{Blkif, Native};

const VDEV: u32 = 51712;
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never came true: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A backend that serves on a thread of its own.
struct Backend {
    id: DomId,
    domain: Domain,
    disks: Arc<Disks>,
    board: Board,
    slot: Slot<Message>,
    thread: JoinHandle<Result<Ended, Error>>,
}

impl Backend {
    fn start(machine: &Machine, name: &str, wanted: &str) -> Self {
        let domain = machine.domain(name);
        let id = domain.id();
        let disk = Arc::new(Disk::new(1 << 20, 512).unwrap());
        let disks = Arc::new(Disks::new(Medium::Memory(disk), None, &Policy::default()));
        let plan = Plan {
            me: id,
            wanted: wanted.parse::<Wanted>().unwrap(),
            order: order::disk("vbd", "xvda".parse().unwrap(), "memory", false, Manner::default()),
            offer: Offer { queues: 4, ring_page_order: 4, persistent: true },
        };
        let (out, parts) = sync_channel(1);
        let (theirs, served) = (domain.clone(), Arc::clone(&disks));
        let thread = thread::spawn(move || {
            let store = theirs.open_store()?;
            let control = theirs.open_control_store()?;
            let serving = Serving::new(&theirs, &store, &control, &*served, plan)?;
            out.send((serving.board(), serving.slot())).unwrap();
            serving.run()
        });
        let (board, slot) = parts.recv().unwrap();
        Self { id, domain, disks, board, slot, thread }
    }

    fn leave(self, force: bool) -> Result<Ended, Error> {
        // It may have ended by itself.
        let _ = self.slot.put(Message::Leave { force, reply: None });
        self.thread.join().unwrap()
    }
}

/// A guest that knows the handshake.
struct Guest {
    domain: Domain,
    seat: Option<Seat>,
    links: Vec<(Pages, Vec<GrantRef>, EventChannel)>,
}

impl Guest {
    fn new(machine: &Machine, name: &str) -> Self {
        Self { domain: machine.domain(name), seat: None, links: Vec::new() }
    }

    fn home(&self) -> String {
        format!("/local/domain/{}/device/vbd/{VDEV}", self.domain.id())
    }

    fn get(&self, path: &str) -> Option<String> {
        let value = self.domain.read(Transaction::NONE, path).ok()?;
        Some(String::from_utf8(value).unwrap())
    }

    /// Looks up who serves us, and waits until it is in state `state`.
    fn meet(&mut self, state: State) -> Seat {
        let mut met = None;
        until("the backend is there", || {
            let Some(back) = self.get(&format!("{}/backend-id", self.home())) else { return false };
            let back = DomId::new(back.parse().unwrap()).unwrap();
            let seat = Pair::new("vbd", VDEV, self.domain.id(), back).seat(End::Front);
            let there = seat.peer_state(&self.domain).unwrap() == state;
            met = Some(seat);
            there
        });
        self.seat = met.clone();
        met.unwrap()
    }

    /// Publishes `queues` rings of `pages` pages, with `wrong` written over what is right: another value, none
    /// (empty), or that of another key (`=other`).
    fn publish(&mut self, queues: usize, pages: usize, wrong: &[(&str, &str)]) {
        let seat = self.seat.clone().unwrap();
        self.revoke();
        let mut keys: Vec<(String, String)> = vec![
            ("protocol".into(), "x86_64-abi".into()),
            ("feature-persistent".into(), "1".into()),
        ];
        if queues > 1 {
            keys.push(("multi-queue-num-queues".into(), queues.to_string()));
        }
        if pages > 1 {
            keys.push(("ring-page-order".into(), pages.ilog2().to_string()));
        }
        for queue in 0..queues {
            let at = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
            let memory = Granting::allocate(&self.domain, pages, seat.peer).unwrap();
            let mut grefs = vec![GrantRef(0); pages];
            self.domain.grant(&memory, 0, Access::ReadWrite, &mut grefs).unwrap();
            let memory = Front::<Blkif<Native>, _>::init(memory).unwrap().into_memory();
            let channel = Events::allocate(&self.domain, seat.peer).unwrap();
            match pages {
                1 => keys.push((format!("{at}ring-ref"), grefs[0].to_string())),
                _ => keys.extend(
                    grefs
                        .iter()
                        .enumerate()
                        .map(|(n, g)| (format!("{at}ring-ref{n}"), g.to_string())),
                ),
            }
            keys.push((format!("{at}event-channel"), channel.port().to_string()));
            self.links.push((memory, grefs, channel));
        }
        for (key, value) in wrong {
            let value = match value.strip_prefix('=') {
                Some(other) => keys.iter().find(|(name, _)| name == other).unwrap().1.clone(),
                None => (*value).to_owned(),
            };
            keys.retain(|(name, _)| name != key);
            if !value.is_empty() {
                keys.push(((*key).into(), value));
            }
        }
        let keys: Vec<(&str, String)> = keys.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        let _ = seat.publish(&self.domain, &keys, State::Initialised).unwrap();
    }

    fn say(&self, state: State) {
        let _ = self.seat.as_ref().unwrap().publish(&self.domain, &[], state).unwrap();
    }

    fn connect(&mut self, queues: usize, pages: usize) {
        self.meet(State::InitWait);
        self.publish(queues, pages, &[]);
        self.meet(State::Connected);
        self.say(State::Connected);
    }

    fn close(&mut self) {
        self.say(State::Closing);
        self.meet(State::Closing);
        self.say(State::Closed);
        self.meet(State::Closed);
        self.withdraw();
    }

    /// Removes the keys of the last connection.
    fn withdraw(&mut self) {
        for name in self.domain.list(Transaction::NONE, &self.home()).unwrap_or_default() {
            if !["backend", "backend-id", "state", "virtual-device"].contains(&name.as_str()) {
                let path = format!("{}/{name}", self.home());
                self.domain.remove(Transaction::NONE, &path).unwrap();
            }
        }
    }

    fn revoke(&mut self) {
        for (_, grefs, _) in &self.links {
            for gref in grefs {
                until("the backend lets the ring go", || {
                    self.domain.revoke(*gref) == hypervisor::memory::Revoked::Done
                });
            }
        }
        self.links.clear();
    }
}

#[test]
fn a_frontend_connects_closes_and_connects_again() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    for (queues, pages) in [(1, 1), (4, 1), (1, 16), (3, 4), (1, 2), (2, 1)] {
        guest.connect(queues, pages);
        assert_eq!(backend.disks.queues(), queues);
        let back = guest.seat.clone().unwrap().opposite;
        for (key, value) in [
            ("sectors", "2048"),
            ("sector-size", "512"),
            ("info", "0"),
            ("feature-flush-cache", "1"),
            ("feature-barrier", "1"),
            ("feature-discard", "1"),
            ("feature-persistent", "1"),
            ("feature-max-indirect-segments", "256"),
            ("multi-queue-max-queues", "4"),
            ("max-ring-page-order", "4"),
        ] {
            assert_eq!(guest.get(&format!("{back}/{key}")).as_deref(), Some(value), "{key}");
        }
        guest.close();
        assert_eq!(backend.disks.queues(), 0);
        guest.revoke();
        guest.say(State::Initialising);
    }
    assert_eq!(backend.board.read().history.connections, 6);
    assert_eq!(backend.leave(true).unwrap(), Ended::Asked);
}

#[test]
fn a_frontend_that_skips_states_is_served() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    // Straight to Connected.
    guest.meet(State::InitWait);
    guest.publish(1, 1, &[]);
    guest.say(State::Connected);
    guest.meet(State::Connected);
    // From Connected to the beginning, as after a kexec, and on.
    for _ in 0..5 {
        guest.say(State::Initialising);
        guest.connect(2, 1);
    }
    // Closed without Closing.
    guest.say(State::Closed);
    guest.meet(State::Closed);
    assert_eq!(backend.disks.queues(), 0);
    assert_eq!(backend.leave(true).unwrap(), Ended::Asked);
}

#[test]
fn keys_as_other_frontends_write_them_are_understood() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    let cases: &[(usize, &[(&str, &str)])] = &[
        // Those that write the order even where there is one page.
        (1, &[("ring-page-order", "0"), ("ring-ref0", "=ring-ref"), ("ring-ref", "")]),
        (1, &[("ring-page-order", "0")]),
        // The older name of the order.
        (4, &[("num-ring-pages", "4"), ("ring-page-order", "")]),
        (1, &[("multi-queue-num-queues", "1")]),
        // The oldest ones, which have one layout and keep no grants.
        (1, &[("protocol", ""), ("feature-persistent", "")]),
        (1, &[("protocol", "x86_32-abi")]),
    ];
    for (pages, keys) in cases {
        guest.meet(State::InitWait);
        guest.publish(1, *pages, keys);
        guest.meet(State::Connected);
        guest.say(State::Connected);
        guest.close();
        guest.revoke();
        guest.say(State::Initialising);
    }
    let history = backend.board.read().history;
    assert_eq!((history.connections, history.fault), (6, None));
    assert_eq!(backend.leave(true).unwrap(), Ended::Asked);
}

#[test]
fn wrong_keys_end_that_connection_with_a_reason() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    let cases: &[(&str, &str, &str)] = &[
        ("ring-ref", "", "key is missing"),
        ("ring-ref", "x", "key is out of range"),
        ("ring-ref", "4294967296", "key is out of range"),
        ("ring-ref", "4000000000", "grant reference is refused"),
        ("event-channel", "", "key is missing"),
        ("event-channel", "0", "key is out of range"),
        ("event-channel", "77777", "event channel is refused"),
        ("protocol", "z80-abi", "protocol is unknown"),
        ("protocol", "\u{7}", "key is out of range"),
        ("ring-page-order", "5", "key is out of range"),
        ("ring-page-order", "3", "key is missing"),
        ("num-ring-pages", "3", "ring pages are no power of two"),
        ("multi-queue-num-queues", "0", "key is out of range"),
        ("multi-queue-num-queues", "5", "key is out of range"),
        ("multi-queue-num-queues", "2", "key is missing"),
        ("feature-persistent", "maybe", "key is out of range"),
    ];
    for (number, (key, value, reason)) in cases.iter().enumerate() {
        guest.meet(State::InitWait);
        guest.publish(1, 1, &[(key, value)]);
        let seat = guest.meet(State::Closed);
        let said = guest.get(&format!("{}/error", seat.opposite)).unwrap();
        assert!(said.contains(reason), "{key}={value}: {said}");
        // It is counted right after it is said.
        let all = || backend.board.read().history.faults.values().sum::<u64>();
        until("the fault is counted", || all() == number as u64 + 1);
        let history = backend.board.read().history;
        assert!(history.faults.contains_key(*reason), "{:?}", history.faults);
        assert_eq!(history.fault.as_deref(), Some(said.as_str()));
        guest.withdraw();
        guest.say(State::Initialising);
    }
    guest.connect(1, 1);
    assert_eq!(backend.leave(true).unwrap(), Ended::Asked);
}

#[test]
fn guests_come_and_go() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut ids = Vec::new();
    for round in 0..6 {
        let mut guest = Guest::new(&machine, "guest");
        ids.push(guest.domain.id());
        match round % 3 {
            // Dies while connected, with its rings mapped.
            0 => guest.connect(2, 2),
            // In the midst of the handshake.
            1 => drop(guest.meet(State::InitWait)),
            // In good order.
            _ => {
                guest.connect(1, 1);
                guest.close();
            }
        }
        guest.domain.leave();
        drop(guest);
        until("the backend has let go", || backend.board.read().guest.is_none());
        assert_eq!(backend.disks.queues(), 0);
        let control = machine.control_store();
        let left =
            control.list(Transaction::NONE, &format!("/local/domain/{}/backend/vbd", backend.id));
        match left {
            Ok(left) => assert!(left.is_empty(), "{left:?}"),
            Err(StoreError::Missing(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 6, "each was another domain");
    assert_eq!(backend.leave(false).unwrap(), Ended::Asked);
}

#[test]
fn asked_to_leave_it_lets_the_guest_finish() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    guest.connect(1, 1);
    let (reply, answer) = sync_channel(1);
    backend.slot.put(Message::Leave { force: false, reply: Some(reply) }).unwrap();
    let seat = guest.meet(State::Closing);
    assert_eq!(guest.get(&format!("{}/online", seat.opposite)).as_deref(), Some("0"));
    assert_eq!(backend.disks.queues(), 1, "it is still served");
    guest.say(State::Closing);
    assert_eq!(backend.disks.queues(), 1);
    guest.say(State::Closed);
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert_eq!(backend.thread.join().unwrap().unwrap(), Ended::Asked);
    assert_eq!(guest.get(&format!("{}/state", guest.home())), None);
    assert_eq!(guest.get(&format!("{}/state", seat.opposite)), None);
    guest.revoke();
}

#[test]
fn by_force_it_leaves_at_once() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    guest.connect(4, 1);
    let home = guest.home();
    assert_eq!(backend.leave(true).unwrap(), Ended::Asked);
    assert_eq!(guest.get(&format!("{home}/state")), None);
    // Nothing of the guest's is held any more.
    guest.revoke();
}

#[test]
fn a_toolstack_that_takes_the_device_away_ends_it() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    guest.connect(1, 1);
    let pair = Pair::new("vbd", VDEV, guest.domain.id(), backend.id);
    let _ = pair.remove(&machine.control_store(), true).unwrap();
    let ended = backend.thread.join().unwrap().unwrap();
    assert!(matches!(ended, Ended::Detached(by) if by.name == "guest"));
    guest.revoke();
}

#[test]
fn a_device_whose_backend_died_is_taken_over_and_a_living_ones_is_not() {
    let machine = Machine::new();
    let first = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    guest.connect(1, 1);
    let refused = Backend::start(&machine, "second", "guest").thread.join().unwrap().unwrap_err();
    assert!(refused.to_string().contains("serves a disk of that name"), "{refused}");
    // As the end of its process.
    first.domain.leave();
    let died = first.thread.join().unwrap();
    assert!(died.is_err(), "{died:?}");
    let third = Backend::start(&machine, "third", "guest");
    guest.connect(2, 1);
    assert_eq!(third.disks.queues(), 2);
    assert_eq!(third.leave(true).unwrap(), Ended::Asked);
}

#[test]
fn a_frontend_that_flips_states_as_fast_as_it_can_harms_nobody() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let other = Backend::start(&machine, "other", "honest");
    let mut honest = Guest::new(&machine, "honest");
    honest.connect(1, 1);
    let mut guest = Guest::new(&machine, "guest");
    guest.meet(State::InitWait);
    guest.publish(2, 1, &[]);
    let state = format!("{}/state", guest.home());
    let mut seed = 0x1234_5678_u64;
    for _ in 0..3000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let value = [b'1', b'3', b'4', b'5', b'6', b'9', b'3', b'6'][(seed >> 61) as usize];
        guest.domain.write(Transaction::NONE, &state, &[value]).unwrap();
    }
    guest.domain.write(Transaction::NONE, &state, b"6").unwrap();
    guest.meet(State::Closed);
    assert_eq!(backend.disks.queues(), 0);
    guest.withdraw();
    guest.say(State::Initialising);
    guest.connect(1, 1);
    assert_eq!(other.disks.queues(), 1, "the other guest noticed nothing");
    assert_eq!(honest.seat.clone().unwrap().peer_state(&honest.domain).unwrap(), State::Connected);
    assert_eq!(other.leave(true).unwrap(), Ended::Asked);
    assert_eq!(backend.leave(true).unwrap(), Ended::Asked);
}

#[test]
fn a_state_that_leads_nowhere_is_waited_in() {
    let machine = Machine::new();
    let (own, guest) = (machine.domain("backend"), machine.domain("guest"));
    let toolstack = machine.control_store();
    let pair = Pair::new("vbd", VDEV, guest.id(), own.id());
    pair.create(&toolstack, &[], &[]).unwrap();
    let disk = Arc::new(Disk::new(1 << 20, 512).unwrap());
    let disks = Disks::new(Medium::Memory(disk), None, &Policy::default());
    let mailbox = Mailbox::<Message>::new().unwrap();
    let offer = Offer { queues: 1, ring_page_order: 0, persistent: true };
    let mut backend = backend::Backend::new(&pair, offer, mailbox.waker(), History::default());
    // No backend of ours ever goes there; a toolstack may write it all the same.
    for state in [State::Reconfiguring, State::Reconfigured] {
        let path = format!("{}/state", pair.back.directory);
        toolstack.write(Transaction::NONE, &path, &[state.digit()]).unwrap();
        assert_eq!(backend.settle(&own, &own, &disks).unwrap(), Settled::Waiting);
        let mut asked = [PollFd::new(mailbox.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut asked, PollTimeout::ZERO), Ok(0), "{state}: it asks for another turn");
    }
}

#[test]
fn one_domain_by_number_must_be_there_and_is_the_only_one() {
    let machine = Machine::new();
    let mut guest = Guest::new(&machine, "by-number");
    let id = guest.domain.id().to_string();
    let backend = Backend::start(&machine, "blkback", &id);
    guest.connect(1, 1);
    guest.domain.leave();
    assert!(matches!(backend.thread.join().unwrap().unwrap(), Ended::Gone(_)));
    let control = machine.control_store();
    let error = "9999".parse::<Wanted>().unwrap().demand(&control).unwrap_err().to_string();
    assert!(error.contains("'9999': there is no such domain"), "{error}");
}

#[test]
fn limits_are_heard_and_only_images_are_resized() {
    let machine = Machine::new();
    let backend = Backend::start(&machine, "blkback", "guest");
    let mut guest = Guest::new(&machine, "guest");
    guest.connect(1, 1);
    backend.disks.limits().set(Some(100), Some(1 << 20));
    backend.slot.ask(PATIENCE, |reply| Message::Wake { reply }).unwrap();
    let (reply, answer) = sync_channel(1);
    backend.slot.put(Message::Change { change: Resize { size: Some(1 << 21) }, reply }).unwrap();
    let refused = answer.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(refused.contains("only images are resized"), "{refused}");
    assert_eq!(backend.disks.limits().get(), (Some(100), Some(1 << 20)));
    assert_eq!(backend.leave(true).unwrap(), Ended::Asked);
}
