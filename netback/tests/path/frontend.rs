//! The project's own frontend and this backend, which meet in a store as they do on Xen.

use std::sync::Arc;

use hypervisor::backend::Offer as _;
use hypervisor::embedded::Domain;
use hypervisor::event::{Channel as _, Events};
use hypervisor::memory::{Access, Granting, Memory as _, Using as _};
use hypervisor::store::{Store, Transaction};
use hypervisor::testing::Machine;
use hypervisor::xenbus::{End, Pair, Published, Seat, State};
use hypervisor::{Error, EventPort, GrantRef};
use netback::connect::ControlLink;
use netback::connect::xenbus::{self, Offer, Ports};
use netback::control;
use netback::credit::Rate;
use netback::filter::Sources;
use netback::kept::{Kept, MOST};
use netback::port::memory::{Memory as Far, pair};
use netback::queue::{Ended, Handle, Parts, Serving, spawn};
use netback::stats::Stats;
use netback::vnet;
use netfront::{Config, HashSetup, HashState, Interface, Phase};
use ring::Front;
use ring::packet::Headers;
use ring::packet::flow::Flow;
use ring::packet::steering::Steering;
use ring::wire::netif;
use ring::wire::netif::chain::Offload;
use ring::wire::netif::control::{
    self as control_wire, Algorithm, Gref, GrefList, HashTypes, Operation, Status,
};

use super::packets::Shape;
use super::scene::eventually;

struct Meeting {
    interface: Interface<Domain>,
    queues: Vec<Handle>,
    fars: Vec<Far>,
    control: Option<control::Handle>,
    serving: Arc<Serving>,
    seat: Seat,
    back: Domain,
    _machine: Machine,
}

/// A machine with a device that nobody has looked at yet.
fn device() -> (Machine, Domain, Domain, Seat) {
    let machine = Machine::new();
    let (guest, back) = (machine.domain("guest"), machine.domain("back"));
    let toolstack = machine.control_store();
    let pair = Pair::new("vif", 0, guest.id(), back.id());
    pair.create(&toolstack, &[("mac", "00:16:3e:00:00:01".to_owned())], &[]).unwrap();
    (machine, guest, back, pair.seat(End::Back))
}

fn say(seat: &Seat, back: &Domain, keys: &[(&'static str, String)], state: State) {
    assert_eq!(seat.publish(back, keys, state).unwrap(), Published::Done);
}

fn meet(queues: u16, config: Config) -> Meeting {
    let (machine, guest, back, seat) = device();
    let offer = Offer { queues, control_ring: true };
    say(&seat, &back, &offer.keys(), State::InitWait);
    let mut interface = Interface::new(guest.clone(), "device/vif/0", config);
    eventually("a connected frontend", || {
        interface.poll().unwrap();
        seat.peer_state(&back).unwrap() == State::Connected
    });
    let transport = xenbus::read(&seat, &back, &offer).unwrap();
    let connection = xenbus::connect(&seat, &back, &transport, std::time::Duration::ZERO).unwrap();
    let many = u16::try_from(connection.queues.len()).unwrap();
    let serving = Arc::new(Serving::new(many, Sources::default()));
    let control = connection.control.map(|link| {
        let serving = Arc::clone(&serving);
        control::spawn("control", seat.peer, link, back.clone(), serving, |_| {}).unwrap()
    });
    let (mut handles, mut fars) = (Vec::new(), Vec::new());
    for (number, link) in (0..).zip(connection.queues) {
        let (near, far) = pair(64).unwrap();
        let parts = Parts {
            name: format!("queue-{number}"),
            number,
            peer: seat.peer,
            features: connection.features,
            link,
            domain: back.clone(),
            serving: Arc::clone(&serving),
            stats: Arc::new(Stats::default()),
        };
        handles.push(spawn(parts, move || Ok(near), |_| {}).unwrap());
        fars.push(far);
    }
    say(&seat, &back, &[], State::Connected);
    eventually("a connected interface", || {
        interface.poll().unwrap();
        interface.phase() == Phase::Connected
    });
    Meeting { interface, queues: handles, fars, control, serving, seat, back, _machine: machine }
}

impl Meeting {
    /// The next packet on any queue, with the number of that.
    fn receive(&mut self) -> (usize, Vec<u8>, Offload) {
        let mut came = None;
        eventually("a packet for the guest", || {
            self.interface.poll().unwrap();
            for (number, queue) in self.interface.queues().iter_mut().enumerate() {
                let mut packet = Vec::new();
                if let Some(offload) = queue.receive_into(&mut packet) {
                    came = Some((number, packet, offload));
                    return true;
                }
            }
            false
        });
        came.unwrap()
    }

    fn end(mut self) {
        self.control.iter().for_each(control::Handle::stop);
        self.queues.iter().for_each(Handle::stop);
        for queue in self.queues.drain(..) {
            assert_eq!(queue.join(), Ended::Stopped);
        }
        if let Some(control) = self.control.take() {
            assert_eq!(control.join(), Ended::Stopped);
        }
    }
}

fn config(queues: u32, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.queues = queues;
    change(&mut config);
    config
}

#[test]
fn packets_cross_each_queue_both_ways() {
    for (asked, split) in [(1, true), (4, true), (4, false)] {
        let mut meeting = meet(3, config(asked, |config| config.split_channels = split));
        assert_eq!(meeting.fars.len(), asked.min(3) as usize);
        for seed in 0..40_u8 {
            let payload = usize::from(seed) * 1500;
            let packet = Shape { v6: seed % 2 == 0, tcp: true, payload, seed }.bytes();
            let number = usize::from(seed) % meeting.fars.len();
            eventually("room to send", || {
                meeting.interface.poll().unwrap();
                meeting.interface.queues()[number].send(&[&packet], Offload::default()).is_ok()
            });
            eventually("a packet from the guest", || {
                meeting.interface.poll().unwrap();
                meeting.fars[number].take().is_some_and(|(_, came)| {
                    assert!(came == packet, "another packet than was sent");
                    true
                })
            });
            assert!(meeting.fars[number].put(&vnet::Header::default(), &packet));
            let (on, came, _) = meeting.receive();
            assert_eq!(on, number);
            assert!(came == packet, "another packet than was sent");
        }
        meeting.end();
    }
}

#[test]
fn packets_come_on_the_queues_that_the_frontend_chose() {
    let key: Vec<u8> = (1..=40).collect();
    let mapping = vec![1, 0, 2, 1, 2];
    let setup = HashSetup { types: HashTypes::ALL, key: key.clone(), mapping: mapping.clone() };
    let mut meeting = meet(3, config(3, |config| config.hash = Some(setup)));
    eventually("the backend is told", || {
        meeting.interface.poll().unwrap();
        meeting.interface.hash_state() != HashState::Setting
    });
    assert_eq!(meeting.interface.hash_state(), HashState::Set);
    let mut expected = Steering::new(3);
    expected.set_algorithm(Algorithm::TOEPLITZ);
    expected.set_types(HashTypes::ALL);
    expected.set_key(&key);
    expected.set_mapping_size(5);
    let table: Vec<u8> = mapping.iter().flat_map(|queue: &u32| queue.to_le_bytes()).collect();
    expected.set_mapping(0, &table);
    let mut used = [0; 3];
    for seed in 0..90 {
        let packet = Shape { v6: seed % 3 == 0, tcp: seed % 2 == 0, payload: 99, seed }.bytes();
        let flow = Flow::of(&packet, &Headers::find(&packet).unwrap()).unwrap();
        let hash = expected.hash(&flow);
        assert!(meeting.fars[usize::from(seed) % 3].put(&vnet::Header::default(), &packet));
        let (on, came, offload) = meeting.receive();
        assert!(came == packet, "another packet than was sent");
        assert_eq!((on, offload.hash), (usize::from(expected.queue(hash)), hash));
        used[on] += 1;
    }
    assert!(used.iter().all(|count| *count > 0), "{used:?}");
    let steered: u64 = meeting.queues.iter().map(|q| q.stats().snapshot().rx_steered).sum();
    assert!(steered > 0);
    meeting.end();
}

/// Keeps pages mapped, and sends and receives through them, and through others.
#[test]
fn pages_that_the_frontend_wants_kept_stay_mapped_and_are_copied_without_asking() {
    for (asked, staging) in [(1, true), (3, true), (2, false)] {
        let mut meeting = meet(3, config(asked, |config| config.staging = staging));
        let pages = if staging { 530 * asked as usize } else { 0 };
        eventually("the pages are kept", || {
            meeting.interface.poll().unwrap();
            meeting.interface.kept() == pages
        });
        let there: usize = (0..3).filter_map(|n| meeting.serving.kept(n)).map(Kept::len).sum();
        assert_eq!(there, pages);
        for seed in 0..20_u8 {
            let payload = usize::from(seed) * 3000;
            let packet = Shape { v6: seed % 2 == 0, tcp: true, payload, seed }.bytes();
            let number = usize::from(seed) % meeting.fars.len();
            let queue = &mut meeting.interface.queues()[number];
            queue.send(&[&packet], Offload::default()).unwrap();
            queue.flush();
            eventually("a packet from the guest", || {
                meeting.fars[number].take().is_some_and(|(_, came)| {
                    assert!(came == packet, "another packet than was sent");
                    true
                })
            });
            assert!(meeting.fars[number].put(&vnet::Header::default(), &packet));
            assert!(meeting.receive().1 == packet, "another packet than was sent");
        }
        for queue in &meeting.queues {
            let stats = queue.stats().snapshot();
            let kept = if staging { (stats.tx_slots, stats.rx_slots) } else { (0, 0) };
            assert_eq!((stats.tx_kept, stats.rx_kept), kept);
            assert!(stats.tx_slots > 20 && stats.rx_slots > 20);
        }
        meeting.end();
    }
}

/// Asks on a control ring of our own, and gives what is answered.
struct Asking {
    ring: Front<netif::Control, <Domain as Granting>::Memory>,
    channel: <Domain as Events>::Channel,
    page: <Domain as Granting>::Memory,
    gref: GrantRef,
    id: u16,
}

impl Asking {
    fn ask(&mut self, operation: Operation) -> (Status, u32) {
        self.id += 1;
        let request = control_wire::Request { id: self.id, operation };
        self.ring.push(&request).unwrap();
        if self.ring.publish().is_needed() {
            self.channel.notify().unwrap();
        }
        let mut answer = None;
        eventually("an answer", || {
            answer = self.ring.take_response().unwrap();
            answer.is_some()
        });
        let answer = answer.unwrap();
        assert_eq!((answer.id, answer.kind), (self.id, operation.number()));
        (answer.status, answer.data)
    }

    /// Puts a list into the page.
    fn list(&self, grefs: &[(GrantRef, u16)]) -> GrefList {
        let entry = |(gref, flags): &(GrantRef, u16)| {
            Gref { gref: *gref, flags: *flags, status: 0xFFFF }.encode()
        };
        let bytes: Vec<u8> = grefs.iter().flat_map(entry).collect();
        self.page.write_at(0, &bytes).unwrap();
        GrefList { queue: 0, gref: self.gref, entries: grefs.len() as u32 }
    }

    /// What the backend wrote of each.
    fn statuses(&self, many: usize) -> Vec<u16> {
        let mut bytes = vec![0; many * Gref::SIZE];
        self.page.read_at(0, &mut bytes).unwrap();
        bytes.as_chunks().0.iter().map(|entry| Gref::decode(entry).status).collect()
    }
}

#[test]
fn what_a_frontend_wants_kept_is_kept_whole_or_not_at_all() {
    let (_machine, guest, back, seat) = device();
    let granted = |pages: usize, access| {
        let memory = Granting::allocate(&guest, pages, back.id()).unwrap();
        let mut grefs = vec![GrantRef(0); pages];
        guest.grant(&memory, 0, access, &mut grefs).unwrap();
        (memory, grefs)
    };
    let (ring, ring_gref) = granted(1, Access::ReadWrite);
    let (page, page_gref) = granted(1, Access::ReadWrite);
    let (_data, data) = granted(3, Access::ReadWrite);
    let (_closed, closed) = granted(1, Access::ReadOnly);
    let channel = Events::allocate(&guest, back.id()).unwrap();
    let ring = Front::init(ring).unwrap();
    let mapped = back.map(guest.id(), &ring_gref, Access::ReadWrite).unwrap();
    let link = ControlLink::new(mapped, back.bind(guest.id(), channel.port()).unwrap());
    let serving = Arc::new(Serving::new(2, Sources::default()));
    let shared = Arc::clone(&serving);
    let handle = control::spawn("control", seat.peer, link, back.clone(), shared, |_| {}).unwrap();
    let mut asking = Asking { ring, channel, page, gref: page_gref[0], id: 0 };
    let kept = serving.kept(0).unwrap();
    let (done, wrong) = (Status::SUCCESS, Status::INVALID_PARAMETER);
    let most = u32::try_from(MOST).unwrap();
    assert_eq!(asking.ask(Operation::GetGrefMappingSize { queue: 1 }), (done, most));
    assert_eq!(asking.ask(Operation::GetGrefMappingSize { queue: 2 }).0, wrong);

    let add = |asking: &mut Asking, grefs: &[(GrantRef, u16)]| {
        let list = asking.list(grefs);
        asking.ask(Operation::AddGrefMapping(list)).0
    };
    let nobodys = GrantRef(60_000);
    for bad in [
        vec![(data[0], 0), (nobodys, 0)],
        vec![(data[0], 0), (data[0], 0)],
        vec![(data[0], 0), (closed[0], 0)],
        vec![(data[0], 2)],
    ] {
        assert_eq!((add(&mut asking, &bad), kept.len()), (wrong, 0), "{bad:?}");
    }
    let two = [(data[0], 0), (closed[0], Gref::READ_ONLY)];
    assert_eq!((add(&mut asking, &two), kept.len()), (done, 2));
    assert_eq!((add(&mut asking, &[(data[1], 0), (data[0], 0)]), kept.len()), (wrong, 2));
    let look = kept.look().unwrap();
    let mut bytes = [1; 8];
    assert_eq!(look.write(data[0], 4088, &[7; 8]), Some(true));
    assert_eq!((look.read(data[0], 4088, &mut bytes), bytes), (Some(true), [7; 8]));
    assert_eq!(look.read(data[0], 4089, &mut bytes), Some(false), "past its end");
    assert_eq!(look.write(closed[0], 0, &[7; 8]), Some(false), "to be read only");
    assert_eq!(look.read(closed[0], 0, &mut bytes), Some(true));
    assert_eq!(look.read(data[1], 0, &mut bytes), None);
    drop(look);

    // Lists that cannot be.
    let list = asking.list(&two);
    for bad in [
        GrefList { queue: 2, ..list },
        GrefList { entries: 513, ..list },
        GrefList { entries: u32::MAX, ..list },
        GrefList { gref: nobodys, ..list },
    ] {
        assert_eq!(asking.ask(Operation::AddGrefMapping(bad)).0, wrong);
        assert_eq!(asking.ask(Operation::DelGrefMapping(bad)), (wrong, 0));
    }
    assert_eq!(kept.len(), 2);

    let list = asking.list(&[(data[0], 0), (data[1], 0), (closed[0], 0), (data[0], 0)]);
    assert_eq!(asking.ask(Operation::DelGrefMapping(list)), (done, 2));
    assert_eq!(asking.statuses(4), [0, 2, 0, 2]);
    assert!(kept.is_empty() && kept.look().is_none());
    handle.stop();
    assert_eq!(handle.join(), Ended::Stopped);
}

#[test]
fn headroom_and_multicast_may_change_while_connected() {
    let mut meeting = meet(1, Config::default());
    let front = meeting.seat.opposite.clone();
    let store = meeting._machine.control_store();
    let write = |key: &str, value: &str| {
        store.write(Transaction::NONE, &format!("{front}/{key}"), value.as_bytes()).unwrap();
    };
    assert!(!xenbus::multicast_control(&meeting.seat, &meeting.back).unwrap());
    write("request-multicast-control", "1");
    assert!(xenbus::multicast_control(&meeting.seat, &meeting.back).unwrap());
    assert_eq!(xenbus::headroom(&meeting.seat, &meeting.back).unwrap(), 0);
    write("xdp-headroom", "256");
    let headroom = xenbus::headroom(&meeting.seat, &meeting.back).unwrap();
    meeting.serving.set_headroom(headroom);
    let packet = Shape { v6: false, tcp: true, payload: 5000, seed: 3 }.bytes();
    assert!(meeting.fars[0].put(&vnet::Header::default(), &packet));
    assert!(meeting.receive().1 == packet, "another packet than was sent");
    let own = meeting.seat.own.clone();
    let rate = |value: &str| {
        store.write(Transaction::NONE, &format!("{own}/rate"), value.as_bytes()).unwrap();
        xenbus::rate(&meeting.seat, &meeting.back)
    };
    assert_eq!(rate("1000,50").unwrap(), Some(Rate { bytes: 1000, micros: 50 }));
    assert!(matches!(rate("fast"), Err(Error::Config(_))));
    meeting.end();
}

/// The keys of a frontend that is served, as it wrote them.
const KEYS: [(&str, &str); 9] = [
    ("request-rx-copy", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-no-csum-offload", "1"),
    ("tx-ring-ref", "8"),
    ("rx-ring-ref", "9"),
    ("event-channel-tx", "10"),
    ("event-channel-rx", "11"),
];

#[test]
fn keys_are_read_with_their_ranges() {
    let (machine, _guest, back, seat) = device();
    let store = machine.control_store();
    let write = |key: &str, value: &str| {
        let path = format!("{}/{key}", seat.opposite);
        store.write(Transaction::NONE, &path, value.as_bytes()).unwrap();
    };
    let remove = |key: &str| {
        store.remove(Transaction::NONE, &format!("{}/{key}", seat.opposite)).unwrap();
    };
    let offer = Offer { queues: 4, control_ring: true };
    let read = || xenbus::read(&seat, &back, &offer);
    for (key, value) in KEYS {
        write(key, value);
    }
    let transport = read().unwrap();
    let ports = Ports::Split { tx: EventPort(10), rx: EventPort(11) };
    let queue = xenbus::QueueKeys { tx: GrantRef(8), rx: GrantRef(9), ports };
    assert_eq!((transport.queues, transport.control), (vec![queue], None));
    // Segments over IPv4 have blank checksums, which it does not take.
    let takes = transport.features.takes;
    assert_eq!([takes.sg, takes.gso_tcpv4, takes.gso_tcpv6], [true, false, false]);
    assert!(!transport.features.rx_notify);
    for (key, value) in [
        ("request-rx-copy", "0"),
        ("feature-sg", "yes"),
        ("feature-gso-tcpv4", "-1"),
        ("tx-ring-ref", "4294967296"),
        ("event-channel-tx", "0"),
        ("multi-queue-num-queues", "5"),
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "2"),
        ("xdp-headroom", "32768"),
        ("ctrl-ring-ref", "12"),
    ] {
        write(key, value);
        assert!(matches!(read(), Err(Error::Peer(_))), "{key} = {value}");
        match KEYS.iter().find(|(each, _)| *each == key) {
            Some((_, good)) => write(key, good),
            None => remove(key),
        }
    }
    for key in ["request-rx-copy", "tx-ring-ref", "rx-ring-ref", "event-channel-rx"] {
        remove(key);
        assert!(matches!(read(), Err(Error::Peer(_))), "no {key}");
        let good = KEYS.iter().find(|(each, _)| *each == key).unwrap().1;
        write(key, good);
    }
    write("event-channel", "12");
    for missing in ["event-channel-tx", "event-channel-rx"] {
        remove(missing);
        let one = xenbus::QueueKeys { ports: Ports::Both(EventPort(12)), ..queue };
        assert_eq!(read().unwrap().queues, [one], "no {missing}");
        write(missing, "11");
    }
    remove("event-channel");
    write("event-channel-tx", "10");
    write("feature-sg", "2");
    assert!(read().unwrap().features.takes.sg, "any number but 0 says yes");
    write("event-channel-rx", "10");
    let both = xenbus::QueueKeys { ports: Ports::Both(EventPort(10)), ..queue };
    assert_eq!(read().unwrap().queues, [both], "one channel, said twice");
    write("event-channel-rx", "11");
    assert!(read().is_ok());
    assert!(matches!(
        xenbus::connect(&seat, &back, &read().unwrap(), std::time::Duration::ZERO),
        Err(Error::Peer(_))
    ));
}
