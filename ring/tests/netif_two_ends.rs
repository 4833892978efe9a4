//! A frontend that sends packets and a backend that gives each of them back, over both rings of a
//! queue: every packet comes back as it was, in order, whatever the pieces it is sent in, the pages
//! that are posted, the interleaving, and the place where the indexes wrap; and every slot is
//! answered.

mod pages;

use std::collections::{BTreeMap, VecDeque};

use hypervisor::GrantRef;
use pages::Pages;
use proptest::prelude::*;
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::collect::Collect;
use ring::wire::netif::control::Algorithm;
use ring::wire::netif::extra::{Gso, Hash};
use ring::wire::netif::fit::{Fit, Placed, Takes};
use ring::wire::netif::gather::{Chain, Content, Gather, Piece};
use ring::wire::netif::rx::Request;
use ring::wire::netif::split::Split;
use ring::wire::netif::{Rx, Status, Tx};
use ring::{Back, Front, ResponseSlot, RingIndex};

type Packet = (Vec<u8>, Offload);

/// The guest's pages by grant reference, in place of what a hypervisor copies from and to.
type Granted = BTreeMap<u32, Vec<u8>>;

struct Guest {
    granted: Granted,
    next: u32,
    tx: Front<Tx, Pages>,
    /// Pages of pieces by the id of their request.
    sending: BTreeMap<u16, u32>,
    rx: Front<Rx, Pages>,
    /// Pages that were posted, by where that was. Positions have no order, but any will do here.
    posted: BTreeMap<u32, (u16, u32)>,
    collect: Collect,
    /// The position of the first slot of the chain that is being followed.
    chain: Option<RingIndex>,
    received: Vec<Packet>,
}

impl Guest {
    fn page(&mut self) -> u32 {
        self.next += 1;
        self.granted.insert(self.next, vec![0xEE; 4096]);
        self.next
    }

    /// Sends a packet cut at `cuts`, if there is room for it on the ring.
    fn send(&mut self, packet: &Packet, sizes: &[u16], offsets: &[u16]) -> bool {
        let (bytes, offload) = packet;
        let mut rest = &bytes[..];
        let (mut pieces, mut ids) = (Vec::new(), Vec::new());
        // The pieces after the first two are as long as they can be, for 18 to be enough.
        while !rest.is_empty() {
            let n = pieces.len();
            let offset = if n < 2 { offsets[n % offsets.len()] % 3000 } else { 0 };
            let most = (4096 - usize::from(offset)).min(rest.len());
            let size = if n < 2 { most.min(sizes[n % sizes.len()].into()) } else { most };
            let gref = self.page();
            let at = usize::from(offset);
            self.granted.get_mut(&gref).unwrap()[at..at + size].copy_from_slice(&rest[..size]);
            rest = &rest[size..];
            pieces.push(Piece { gref: GrantRef(gref), offset, size: size as u16 });
            ids.push(u16::try_from(gref % 65_536).unwrap());
        }
        let split = Split::new(&pieces, &ids, *offload).unwrap();
        if (self.tx.free() as usize) < split.slots_needed() {
            return false;
        }
        for slot in split.slots() {
            self.tx.push(&slot).unwrap();
        }
        for (id, piece) in ids.iter().zip(&pieces) {
            assert_eq!(self.sending.insert(*id, piece.gref.0), None);
        }
        let _ = self.tx.publish();
        true
    }

    /// Takes what was answered.
    fn reap(&mut self) {
        while let Some(response) = self.tx.take_response().unwrap() {
            if response.status == Status::NULL {
                continue;
            }
            assert_eq!(response.status, Status::OKAY);
            let gref = self.sending.remove(&response.id).expect("nobody sent that");
            self.granted.remove(&gref);
        }
    }

    fn post(&mut self, pages: usize) {
        for _ in 0..pages.min(self.rx.free() as usize) {
            let gref = self.page();
            let id = u16::try_from(gref % 512).unwrap();
            let at = self.rx.push(&Request { id, gref: GrantRef(gref) }).unwrap();
            self.posted.insert(at.0, (id, gref));
        }
        let _ = self.rx.publish();
    }

    fn receive(&mut self) {
        loop {
            let at = self.rx.taken();
            let Some(slot) = self.rx.take_response().unwrap() else { break };
            let first = *self.chain.get_or_insert(at);
            let Some(arrival) = self.collect.feed(&slot).unwrap() else { continue };
            let slots = u32::try_from(arrival.slots()).unwrap();
            let pages: Vec<_> =
                (0..slots).map(|n| self.posted.remove(&first.add(n).0).unwrap()).collect();
            for (slot, id) in arrival.pages() {
                assert_eq!(pages[slot].0, id, "the response to another request");
            }
            let (size, offload) = arrival.packet().unwrap();
            let mut bytes = Vec::new();
            for piece in arrival.pieces() {
                let at = usize::from(piece.offset);
                let page = &self.granted[&pages[piece.slot].1];
                bytes.extend(&page[at..at + usize::from(piece.size)]);
            }
            assert_eq!(bytes.len(), size);
            self.received.push((bytes, offload));
            for (_, gref) in pages {
                self.granted.remove(&gref);
            }
            self.chain = None;
        }
        self.collect.end().unwrap();
    }
}

struct Host {
    tx: Back<Tx, Pages>,
    rx: Back<Rx, Pages>,
    gather: Gather,
    /// The slots of the chain that is being followed.
    open: VecDeque<ResponseSlot>,
    /// Packets on their way back.
    held: VecDeque<Packet>,
    takes: Takes,
}

impl Host {
    /// Takes up to `most` slots off the transmit ring.
    fn send(&mut self, granted: &Granted, most: usize) {
        for _ in 0..most {
            let Some((slot, answer)) = self.tx.take_request().unwrap() else {
                self.gather.end().unwrap();
                break;
            };
            self.open.push_back(answer);
            if let Some(chain) = self.gather.feed(&slot).unwrap() {
                self.finish(granted, &chain);
            }
        }
        let _ = self.tx.publish();
    }

    fn finish(&mut self, granted: &Granted, chain: &Chain) {
        let Content::Packet(packet) = chain.content() else { panic!("{:?}", chain.content()) };
        let mut bytes = Vec::new();
        for piece in packet.pieces() {
            let at = usize::from(piece.offset);
            bytes.extend(&granted[&piece.gref.0][at..at + usize::from(piece.size)]);
        }
        assert_eq!(bytes.len(), usize::from(packet.size));
        self.held.push_back((bytes, packet.offload));
        assert_eq!(self.open.len(), chain.slots());
        for response in chain.answers(Status::OKAY) {
            self.tx.respond(self.open.pop_front().unwrap(), &response);
        }
    }

    /// Gives back as many packets as pages were posted for.
    fn give(&mut self, granted: &mut Granted) {
        while let Some((bytes, offload)) = self.held.front() {
            let fit = Fit::new(bytes.len(), *offload, &self.takes).unwrap();
            if (self.rx.look().unwrap() as usize) < fit.slots() {
                break;
            }
            for n in 0..fit.slots() {
                let (request, answer) = self.rx.take_request().unwrap().unwrap();
                let slot = match fit.place(n, request) {
                    Placed::Extra(slot) => slot,
                    Placed::Data { copy, response } => {
                        let page = granted.get_mut(&copy.gref.0).expect("not granted");
                        let (at, size) = (usize::from(copy.offset), usize::from(copy.size));
                        page[at..at + size].copy_from_slice(&bytes[copy.from..copy.from + size]);
                        response.into()
                    }
                };
                self.rx.respond(answer, &slot);
            }
            self.held.pop_front();
        }
        let _ = self.rx.publish();
    }
}

fn both(start: u32, headroom: u16) -> (Guest, Host) {
    let (tx, rx) = (Pages::new(1), Pages::new(1));
    let guest = Guest {
        granted: Granted::new(),
        next: 0,
        tx: Front::init_at(tx.clone(), RingIndex(start)).unwrap(),
        sending: BTreeMap::new(),
        rx: Front::init_at(rx.clone(), RingIndex(start)).unwrap(),
        posted: BTreeMap::new(),
        collect: Collect::new(),
        chain: None,
        received: Vec::new(),
    };
    let mut takes = Takes::default();
    (takes.sg, takes.gso_tcpv4, takes.gso_tcpv6, takes.hash) = (true, true, true, true);
    takes.headroom = headroom;
    let host = Host {
        tx: Back::attach(tx).unwrap(),
        rx: Back::attach(rx).unwrap(),
        gather: Gather::new(),
        open: VecDeque::new(),
        held: VecDeque::new(),
        takes,
    };
    assert_eq!((guest.tx.slots(), guest.rx.slots()), (256, 256));
    (guest, host)
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize, Offload, Vec<u16>, Vec<u16>),
    Host(usize),
    Give,
    Reap,
    Post(usize),
    Receive,
}

fn offload() -> impl Strategy<Value = Offload> {
    let checksum =
        prop_oneof![Just(Checksum::Unchecked), Just(Checksum::Validated), Just(Checksum::Blank)];
    let gso = prop::option::of((1_u16.., 1_u8..=2));
    let hash = prop::option::of(any::<u32>());
    (checksum, gso, hash).prop_map(|(checksum, gso, hash)| {
        let gso = gso.map(|(size, protocol)| Gso { size, protocol, features: 0 });
        let hash = hash.map(|value| Hash { of: 0, algorithm: Algorithm::TOEPLITZ, value });
        Offload { checksum, gso, hash }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![14_usize..100, 60_usize..1515, 14_usize..9000, 14_usize..=60_000];
    let sizes = prop::collection::vec(prop_oneof![0_u16..3, 0_u16..4096], 1..4);
    let offsets = prop::collection::vec(any::<u16>(), 1..4);
    prop_oneof![
        4 => (size, offload(), sizes, offsets).prop_map(|(size, offload, sizes, offsets)| {
            Step::Send(size, offload, sizes, offsets)
        }),
        3 => (1_usize..40).prop_map(Step::Host),
        2 => Just(Step::Give),
        1 => Just(Step::Reap),
        3 => (1_usize..60).prop_map(Step::Post),
        2 => Just(Step::Receive),
    ]
}

proptest! {
    #[test]
    fn packets_come_back_as_they_were(
        start: u32,
        headroom in prop_oneof![Just(0_u16), Just(240)],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let (mut guest, mut host) = both(start, headroom);
        let mut sent: Vec<Packet> = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            match step {
                Step::Send(size, offload, sizes, offsets) => {
                    let packet: Vec<u8> = (0..*size).map(|k| (k * 3 + k / 256 + n) as u8).collect();
                    let packet = (packet, *offload);
                    if guest.send(&packet, sizes, offsets) {
                        sent.push(packet);
                    }
                }
                Step::Host(most) => host.send(&guest.granted, *most),
                Step::Give => host.give(&mut guest.granted),
                Step::Reap => guest.reap(),
                Step::Post(pages) => guest.post(*pages),
                Step::Receive => guest.receive(),
            }
        }
        // What is on its way arrives, given pages.
        host.send(&guest.granted, 256);
        while !host.held.is_empty() {
            guest.post(256);
            host.give(&mut guest.granted);
            guest.receive();
        }
        guest.receive();
        guest.reap();
        prop_assert!(guest.received == sent, "{} came back of {}", guest.received.len(), sent.len());
        prop_assert!(guest.sending.is_empty());
        prop_assert_eq!((host.tx.outstanding(), guest.tx.outstanding()), (0, 0));
    }
}
