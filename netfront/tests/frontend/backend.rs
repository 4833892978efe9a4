//! A backend that does what a test tells it to.

use std::collections::VecDeque;

use hypervisor::embedded::Domain;
use hypervisor::event::{Channel, Events};
use hypervisor::memory::{Access, CopyOp, Direction, GrantStatus, Using};
use hypervisor::store::{Store, Transaction};
use hypervisor::testing::Machine;
use hypervisor::xenbus::{End, Pair, Published, Seat, State};
use hypervisor::{DomId, EventPort, GrantRef};
use netfront::{Config, Interface, Offload, Offloads, Phase};
use ring::wire::netif::fit::{Fit, Placed, Takes};
use ring::wire::netif::gather::{Chain, Content, Gather};
use ring::wire::netif::{Control, Rx, Status, Tx, chain, rx, tx};
use ring::{Back, ResponseSlot};

pub(crate) const DIRECTORY: &str = "device/vif/0";
pub(crate) const MAC: &str = "00:16:3e:01:02:03";

type Mapping = <Domain as Using>::Mapping;
type EventChannel = <Domain as Events>::Channel;
pub(crate) type TestInterface = Interface<Domain>;
/// A packet, and what is said of it.
pub(crate) type Packet = (Vec<u8>, Offload);

/// What a backend offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    pub(crate) queues: u32,
    pub(crate) offloads: Offloads,
    pub(crate) split: bool,
    pub(crate) multicast: bool,
    pub(crate) control: bool,
    /// Bytes that it leaves free in front of packets, though nobody asked.
    pub(crate) headroom: u16,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            queues: 4,
            offloads: Offloads::ALL,
            split: true,
            multicast: true,
            control: true,
            headroom: 0,
        }
    }
}

pub(crate) struct Queue {
    pub(crate) tx: Back<Tx, Mapping>,
    pub(crate) rx: Back<Rx, Mapping>,
    channels: Vec<EventChannel>,
    gather: Gather,
    /// The slots of the chain that is being followed.
    open: VecDeque<ResponseSlot>,
}

impl Queue {
    fn notify(&self, rx: bool) {
        let channel = if rx { self.channels.last() } else { self.channels.first() };
        channel.unwrap().notify().unwrap();
    }

    /// Answers one transmit slot with anything.
    pub(crate) fn answer_tx(&mut self, slot: ResponseSlot, response: tx::Response) {
        self.tx.respond(slot, &response);
        if self.tx.publish().is_needed() {
            self.notify(false);
        }
    }

    /// Answers as many receive slots as there are `answers`, with anything.
    pub(crate) fn answer_rx(&mut self, answers: impl IntoIterator<Item = Answer>) {
        for answer in answers {
            let (request, slot) = self.rx.take_request().unwrap().expect("a page is posted");
            self.rx.respond(slot, &answer(request));
        }
        if self.rx.publish().is_needed() {
            self.notify(true);
        }
    }

    /// Leaves everything that is on the rings unanswered.
    fn abandon(&mut self) {
        self.open.drain(..).for_each(ResponseSlot::abandon);
    }
}

/// What becomes of a posted page.
pub(crate) type Answer = Box<dyn Fn(rx::Request) -> rx::Slot>;

pub(crate) struct Backend {
    pub(crate) domain: Domain,
    pub(crate) seat: Seat,
    pub(crate) features: Features,
    pub(crate) queues: Vec<Queue>,
    pub(crate) control: Option<(Back<Control, Mapping>, EventChannel)>,
    /// Whether it waits for the frontend to give up the rings of the last connection.
    parted: bool,
    /// What the frontend takes.
    pub(crate) takes: Takes,
    /// Packets that the frontend sent, in order.
    pub(crate) sent: Vec<Packet>,
    pub(crate) multicast: Vec<chain::Multicast>,
    /// Pages that stay mapped.
    pub(crate) hoard: Option<Vec<Mapping>>,
}

impl Backend {
    /// Gives `guest` an interface, as a toolstack does, and begins to serve it.
    pub(crate) fn new(machine: &Machine, name: &str, guest: DomId, features: Features) -> Self {
        let domain = machine.domain(name);
        let control = domain.open_control_store().unwrap();
        let pair = Pair::new("vif", 0, guest, domain.id());
        pair.create(&control, &[("mac", MAC.to_owned()), ("mtu", "9000".to_owned())], &[]).unwrap();
        let mut backend = Self {
            seat: pair.seat(End::Back),
            domain,
            features,
            queues: Vec::new(),
            control: None,
            parted: false,
            takes: Takes::default(),
            sent: Vec::new(),
            multicast: Vec::new(),
            hoard: None,
        };
        backend.offer();
        backend
    }

    pub(crate) fn say(&self, keys: &[(&str, String)], state: State) {
        let said = self.seat.publish(&self.domain, keys, state).unwrap();
        assert_eq!(said, Published::Done);
    }

    /// Publishes what is offered.
    pub(crate) fn offer(&mut self) {
        let f = self.features;
        let flag = |flag: bool| u8::from(flag).to_string();
        self.say(
            &[
                ("multi-queue-max-queues", f.queues.to_string()),
                ("feature-rx-copy", flag(true)),
                ("feature-sg", flag(f.offloads.sg)),
                ("feature-gso-tcpv4", flag(f.offloads.gso_tcpv4)),
                ("feature-gso-tcpv6", flag(f.offloads.gso_tcpv6)),
                ("feature-no-csum-offload", flag(!f.offloads.checksum_v4)),
                ("feature-ipv6-csum-offload", flag(f.offloads.checksum_v6)),
                ("feature-split-event-channels", flag(f.split)),
                ("feature-multicast-control", flag(f.multicast)),
                ("feature-ctrl-ring", flag(f.control)),
            ],
            State::InitWait,
        );
    }

    pub(crate) fn front_key(&self, key: &str) -> Option<u32> {
        let path = format!("{}/{key}", self.seat.opposite);
        let value = self.domain.read(Transaction::NONE, &path).ok()?;
        Some(String::from_utf8(value).unwrap().parse().unwrap())
    }

    pub(crate) fn front_state(&self) -> State {
        self.seat.peer_state(&self.domain).unwrap()
    }

    pub(crate) fn map(&self, gref: u32) -> Mapping {
        self.domain.map(self.seat.peer, &[GrantRef(gref)], Access::ReadWrite).expect("it maps")
    }

    fn bind(&self, key: &str) -> Option<EventChannel> {
        let port = EventPort(self.front_key(key)?);
        Some(self.domain.bind(self.seat.peer, port).expect("it binds"))
    }

    /// Takes one step of a device's life, as backends do.
    pub(crate) fn live(&mut self) {
        let own = self.seat.own_state(&self.domain, Transaction::NONE).unwrap();
        match (own, self.front_state()) {
            (State::Closed, State::Initialising) => self.offer(),
            (State::Closed, _) => {}
            (_, State::Closing | State::Closed) => {
                self.drop_rings();
                self.say(&[], State::Closed);
                self.parted = false;
            }
            // Those are the rings that were dropped.
            (_, State::Connected) if self.parted => {}
            (_, front) => {
                self.parted &= front == State::Connected;
                if self.queues.is_empty() {
                    self.connect();
                }
            }
        }
    }

    /// Drops the connection and asks for a new one.
    pub(crate) fn restart(&mut self) {
        self.drop_rings();
        self.offer();
        self.parted = true;
    }

    /// Maps and binds what the frontend published, if it has.
    pub(crate) fn connect(&mut self) -> bool {
        if self.front_state() != State::Connected {
            return false;
        }
        assert_eq!(self.front_key("request-rx-copy"), Some(1));
        assert_eq!(self.front_key("feature-rx-notify"), Some(1));
        let flag = |key: &str| self.front_key(key) == Some(1);
        let mut takes = Takes::default();
        takes.sg = flag("feature-sg");
        takes.gso_tcpv4 = flag("feature-gso-tcpv4");
        takes.gso_tcpv6 = flag("feature-gso-tcpv6");
        takes.headroom = self.features.headroom;
        self.takes = takes;
        let count = self.front_key("multi-queue-num-queues").unwrap_or(1);
        assert!(count <= self.features.queues);
        for number in 0..count {
            let at = if count > 1 { format!("queue-{number}/") } else { String::new() };
            let tx = self.map(self.front_key(&format!("{at}tx-ring-ref")).unwrap());
            let rx = self.map(self.front_key(&format!("{at}rx-ring-ref")).unwrap());
            let channels = match self.bind(&format!("{at}event-channel")) {
                Some(one) => vec![one],
                None => {
                    assert!(self.features.split, "nobody offered that");
                    ["tx", "rx"]
                        .map(|side| self.bind(&format!("{at}event-channel-{side}")).unwrap())
                        .into()
                }
            };
            self.queues.push(Queue {
                tx: Back::attach(tx).unwrap(),
                rx: Back::attach(rx).unwrap(),
                channels,
                gather: Gather::new(),
                open: VecDeque::new(),
            });
        }
        if let Some(gref) = self.front_key("ctrl-ring-ref") {
            let ring = Back::attach(self.map(gref)).unwrap();
            self.control = Some((ring, self.bind("event-channel-ctrl").unwrap()));
        }
        self.say(&[], State::Connected);
        true
    }

    /// Takes up to `most` slots off a transmit ring, with the packets that are in them, and answers.
    pub(crate) fn take(&mut self, queue: usize, most: usize) {
        for _ in 0..most {
            let taken = self.queues[queue].tx.take_request().unwrap();
            let Some((slot, answer)) = taken else {
                self.queues[queue].gather.end().unwrap();
                break;
            };
            let queue_ref = &mut self.queues[queue];
            queue_ref.open.push_back(answer);
            if let Some(chain) = queue_ref.gather.feed(&slot).unwrap() {
                self.finish(queue, &chain);
            }
        }
        let queue = &mut self.queues[queue];
        if queue.tx.publish().is_needed() {
            queue.notify(false);
        }
    }

    fn finish(&mut self, queue: usize, chain: &Chain) {
        match chain.content() {
            Content::Packet(packet) => {
                let mut bytes = vec![0; packet.size.into()];
                let (mut ops, mut rest) = (Vec::new(), &mut bytes[..]);
                for piece in packet.pieces() {
                    let (local, later) = rest.split_at_mut(piece.size.into());
                    rest = later;
                    ops.push(CopyOp {
                        gref: piece.gref,
                        offset: piece.offset,
                        direction: Direction::FromPeer,
                        local,
                        status: GrantStatus::GENERAL_ERROR,
                    });
                    if let Some(hoard) = &mut self.hoard {
                        let grefs = [piece.gref];
                        let page = self.domain.map(self.seat.peer, &grefs, Access::ReadOnly);
                        hoard.push(page.expect("a page maps"));
                    }
                }
                self.domain.copy(self.seat.peer, &mut ops).unwrap();
                if ops.iter().all(|op| op.status.is_okay()) {
                    self.sent.push((bytes, packet.offload));
                } else {
                    self.must_have_left();
                }
            }
            Content::Multicast(change) => self.multicast.push(change),
            Content::Dropped(dropped) => panic!("the frontend sent {dropped}"),
        }
        let queue = &mut self.queues[queue];
        assert_eq!(queue.open.len(), chain.slots());
        for response in chain.answers(Status::OKAY) {
            queue.tx.respond(queue.open.pop_front().unwrap(), &response);
        }
    }

    /// Takes everything from every queue, and asks to be told of more.
    pub(crate) fn poll(&mut self) {
        for queue in 0..self.queues.len() {
            self.take(queue, usize::MAX);
            let _ = self.queues[queue].tx.rearm().unwrap();
        }
    }

    /// Gives the frontend a packet, if it has posted enough pages. Their rest is poison.
    pub(crate) fn give(&mut self, queue: usize, packet: &Packet) -> bool {
        let (bytes, offload) = packet;
        let fit = Fit::new(bytes.len(), *offload, &self.takes).unwrap();
        let (domain, peer) = (&self.domain, self.seat.peer);
        let queue = &mut self.queues[queue];
        if (queue.rx.look().unwrap() as usize) < fit.slots() {
            return false;
        }
        let mut refused = false;
        let mut put = |gref: GrantRef, offset: u16, local: &mut [u8]| {
            let direction = Direction::ToPeer;
            let status = GrantStatus::GENERAL_ERROR;
            let mut ops = [CopyOp { gref, offset, direction, local, status }];
            domain.copy(peer, &mut ops).unwrap();
            refused |= !ops[0].status.is_okay();
        };
        for n in 0..fit.slots() {
            let (request, slot) = queue.rx.take_request().unwrap().unwrap();
            put(request.gref, 0, &mut [0xEE; 4096]);
            let answer = match fit.place(n, request) {
                Placed::Extra(slot) => slot,
                Placed::Data { copy, response } => {
                    let mut local = bytes[copy.from..copy.from + usize::from(copy.size)].to_vec();
                    put(copy.gref, copy.offset, &mut local);
                    response.into()
                }
            };
            queue.rx.respond(slot, &answer);
        }
        if queue.rx.publish().is_needed() {
            queue.notify(true);
        }
        if refused {
            self.must_have_left();
        }
        true
    }

    /// A page was refused: the frontend takes pages back only after it has said that it leaves.
    fn must_have_left(&self) {
        assert_ne!(self.front_state(), State::Connected, "a page was refused");
    }

    /// Lets go of everything but the store, as a killed process would.
    pub(crate) fn drop_rings(&mut self) {
        self.queues.iter_mut().for_each(Queue::abandon);
        self.queues.clear();
        self.control = None;
    }
}

/// Polls both ends until the interface is connected.
pub(crate) fn connect(interface: &mut TestInterface, backend: &mut Backend) {
    for _ in 0..20 {
        interface.poll().unwrap();
        backend.live();
        let linked = interface.queues().first().is_some_and(netfront::Queue::is_linked);
        if linked && !backend.queues.is_empty() && interface.phase() == Phase::Connected {
            return;
        }
    }
    panic!("not connected: {:?}, {:?}", interface.phase(), interface.ending());
}

/// A machine with a connected interface.
pub(crate) fn scene(
    features: Features,
    config: Config,
) -> (Machine, Domain, TestInterface, Backend) {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let mut backend = Backend::new(&machine, "backend", guest.id(), features);
    let mut interface = Interface::new(guest.clone(), DIRECTORY, config);
    connect(&mut interface, &mut backend);
    (machine, guest, interface, backend)
}

/// Bytes that tell where they are.
pub(crate) fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|k| (k * 3 + k / 256 + seed) as u8).collect()
}

/// All that has come in on a queue.
pub(crate) fn receive(interface: &mut TestInterface, queue: usize) -> Vec<Packet> {
    let mut packets = Vec::new();
    let queue = &mut interface.queues()[queue];
    while let Some(received) = queue.receive() {
        let mut bytes = vec![0; received.len()];
        assert_eq!(queue.read(&received, 0, &mut bytes), bytes.len());
        packets.push((bytes, received.offload()));
        queue.release(received);
    }
    queue.flush();
    packets
}
