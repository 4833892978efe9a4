//! A network queue whose frontend does anything at all, on all three of its rings, and whose port brings
//! anything: nothing outside the granted pages is reached, what goes out is what was said of it, and
//! nothing stays mapped.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use domkit_fuzz::bytes::Bytes;
use domkit_fuzz::frontend::begin;
use domkit_fuzz::memory::{Granted, Pages};
use domkit_fuzz::platform::{Bell, FIRST, Guest, PAGES, READ_ONLY};
use hypervisor::memory::Memory;
use hypervisor::{DomId, EventPort, GrantRef, HostError, PAGE_SIZE};
use netback::buffer::{Buffer, Pool, ROOM};
use netback::connect::{Channels, Features, Link};
use netback::control;
use netback::credit::Rate;
use netback::filter::Sources;
use netback::offload::{LEAST_SEGMENT, Sums};
use netback::port::{Port, Readable, Turned};
use netback::queue::{Control, Ended, Queue, Serving, ends_of_rings};
use netback::stats::Stats;
use netback::vnet::{Header, flags, gso};
use ring::layout::{HEADER, Word};
use ring::wire::netif::control::{GrefList, Operation, Request as Ask};
use ring::wire::netif::extra::{Extra, Gso, Kind};
use ring::wire::netif::fit::Takes;
use ring::wire::netif::tx::{Flags, Request, Slot};
use ring::wire::netif::{self, rx};
use ring::{Back, Waiting};

/// The frontend, and the network behind the port.
struct State {
    script: Bytes,
    guest: Guest,
    tx: Pages,
    rx: Pages,
    asks: Pages,
    control: Option<Back<netif::Control, Granted>>,
    ropes: [Arc<AtomicBool>; 2],
    serving: Arc<Serving>,
    line: Arc<Control>,
    /// What comes from the network next.
    coming: VecDeque<(Header, Vec<u8>)>,
    waited: u32,
}

const PEER: DomId = match DomId::new(1) {
    Some(peer) => peer,
    None => DomId::ZERO,
};

/// Puts `bytes` into the next slot of a ring, and shows it.
fn push(ring: &Pages, bytes: &[u8]) {
    let mut word = [0; 4];
    ring.read_at(Word::RequestProducer.offset(), &mut word).unwrap();
    let index = u32::from_le_bytes(word);
    let slots = (PAGE_SIZE - HEADER) / bytes.len();
    // Rings have powers of two.
    let slots = 1_usize << slots.ilog2();
    let at = HEADER + (index as usize % slots) * bytes.len();
    ring.write_at(at, bytes).unwrap();
    let next = index.wrapping_add(1).to_le_bytes();
    ring.write_at(Word::RequestProducer.offset(), &next).unwrap();
}

impl State {
    /// A packet as networks have them, or nearly.
    fn packet(&mut self) -> Vec<u8> {
        let how = self.script.byte();
        let mut packet = vec![2; 12];
        for _ in 0..(how >> 6) {
            packet.extend([0x81, 0, 0, 7]);
        }
        let payload = usize::from(self.script.byte()) << (how & 7).min(8);
        let tcp = how & 8 != 0;
        let len = payload + if tcp { 20 } else { 8 };
        if how & 16 == 0 {
            packet.extend([8, 0, 0x45, 0]);
            packet.extend(((20 + len) as u16).to_be_bytes());
            packet.extend([0, 1, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
            packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            packet.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
            packet.extend((len as u16).to_be_bytes());
            packet.extend([if tcp { 6 } else { 17 }, 64]);
            packet.extend([9; 32]);
        }
        packet.extend([0, 1, 0, 2]);
        if tcp {
            packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x19, 0, 0, 0, 0, 0, 0]);
        } else {
            packet.extend(((8 + payload) as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.resize(packet.len() + payload, how);
        if how & 32 != 0 {
            let at = usize::from(self.script.byte()) % packet.len();
            packet[at] = self.script.byte();
        }
        packet
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.script.byte(), self.script.byte()])
    }

    fn gref(&mut self) -> GrantRef {
        GrantRef(FIRST + u32::from(self.script.byte()) % (PAGES as u32 + 1))
    }

    fn request(&mut self) -> Request {
        let (gref, how) = (self.gref(), self.script.byte());
        let size = match how & 3 {
            0 => u16::from(self.script.byte()),
            1 => self.half() % 4097,
            _ => self.half(),
        };
        let offset = if how & 4 == 0 { 0 } else { self.half() % 4096 };
        Request { gref, offset, flags: Flags(u16::from(how >> 4)), id: self.half(), size }
    }

    fn act(&mut self) {
        match self.script.byte() % 20 {
            0..=3 => push(&self.tx.clone(), &Slot::from(self.request()).0),
            4 => {
                // A packet of whole claims, with something to be done.
                let packet = self.packet();
                let page = usize::from(self.script.byte()) % READ_ONLY;
                let fits = packet.len().min(PAGE_SIZE);
                self.guest.pages.write_at(page * PAGE_SIZE, &packet[..fits]).unwrap();
                let how = self.script.byte();
                let mut marks = Flags::NONE;
                if how & 1 != 0 {
                    marks = marks.with(Flags::CSUM_BLANK);
                }
                if how & 2 != 0 {
                    marks = marks.with(Flags::EXTRA_INFO);
                }
                let gref = GrantRef(FIRST + page as u32);
                let request = Request { gref, offset: 0, flags: marks, id: 7, size: fits as u16 };
                push(&self.tx, &Slot::from(request).0);
                if how & 2 != 0 {
                    let gso = Gso { size: self.half(), protocol: 1 + (how >> 7), features: 0 };
                    let extra = Extra { more: how & 4 != 0, kind: Kind::Gso(gso) };
                    push(&self.tx, &Slot::from(extra).0);
                }
            }
            5 => {
                let ring =
                    [&self.tx, &self.rx, &self.asks][usize::from(self.script.byte()) % 3].clone();
                let at = self.script.word() as usize % PAGE_SIZE;
                let len = usize::from(self.script.byte()).min(PAGE_SIZE - at);
                let bytes = self.script.some(len);
                ring.write_at(at, &bytes).unwrap();
            }
            6..=9 => {
                let request = rx::Request { id: self.half(), gref: self.gref() };
                let mut bytes = [0; 8];
                bytes[..2].copy_from_slice(&request.id.to_le_bytes());
                bytes[4..].copy_from_slice(&request.gref.0.to_le_bytes());
                push(&self.rx, &bytes);
            }
            10 => {
                let page = usize::from(self.script.byte()) % READ_ONLY;
                let at = usize::from(self.half()) % PAGE_SIZE;
                let bytes = self.script.some(64.min(PAGE_SIZE - at));
                self.guest.pages.write_at(page * PAGE_SIZE + at, &bytes).unwrap();
            }
            11 => self.guest.toggle(usize::from(self.script.byte()) % PAGES),
            12 | 13 => {
                let list = GrefList {
                    queue: u32::from(self.script.byte()) % 3,
                    gref: self.gref(),
                    entries: self.script.word() % 600,
                };
                let operation = match self.script.byte() % 4 {
                    0 => Operation::AddGrefMapping(list),
                    1 => Operation::DelGrefMapping(list),
                    _ => {
                        let mut slot = [0; Ask::SIZE];
                        let some = self.script.some(Ask::SIZE);
                        slot[..some.len()].copy_from_slice(&some);
                        let kind = u16::from(slot[2]) % 12;
                        slot[2..4].copy_from_slice(&kind.to_le_bytes());
                        Ask::decode(&slot).operation
                    }
                };
                push(&self.asks, &Ask { id: 1, operation }.encode());
                self.answer();
            }
            14..=16 => {
                let packet = self.packet();
                let mut header = [0; Header::SIZE];
                let some = self.script.some(Header::SIZE);
                header[..some.len()].copy_from_slice(&some);
                let mut header = Header::decode(&header);
                header.flags &= 3;
                header.gso_type = [0, 0, gso::TCPV4, gso::TCPV6, gso::UDP_L4, header.gso_type]
                    [usize::from(header.gso_type) % 6];
                if self.script.byte() & 1 != 0 {
                    header.csum_start %= 80;
                    header.csum_offset = [6, 16][usize::from(header.csum_offset & 1)];
                }
                self.coming.push_back((header, packet));
            }
            17 => self.ropes.iter().for_each(|rope| rope.store(true, Relaxed)),
            18 => {
                let headroom = self.half() % 4097;
                self.serving.set_headroom(headroom);
            }
            _ => {
                let bytes = u64::from(self.half());
                let rate = (bytes > 0).then_some(Rate { bytes: bytes << 10, micros: 50 });
                self.serving.limits.tx.set(rate);
            }
        }
    }

    /// What is on the control ring is answered, as far as it makes sense.
    fn answer(&mut self) {
        let Some(mut ring) = self.control.take() else { return };
        for _ in 0..4 {
            match control::round(&mut ring, PEER, &self.guest, &self.serving) {
                Ok(true) => {}
                Ok(false) => break,
                // The device would be over.
                Err(_) => return,
            }
        }
        let _ = ring.publish();
        self.control = Some(ring);
    }
}

/// The port: what goes out is looked at, and what comes is scripted.
struct Wire {
    state: Rc<RefCell<State>>,
    sent: Vec<Buffer>,
}

fn look_at(buffer: &Buffer) {
    let (header, len) = (buffer.header(), buffer.len());
    assert!((14..=usize::from(u16::MAX)).contains(&len), "{len} bytes");
    if header.flags & flags::NEEDS_CSUM != 0 {
        let at = usize::from(header.csum_start) + usize::from(header.csum_offset);
        assert!(at + 2 <= len, "a checksum at {at} in {len} bytes");
    }
    if header.gso_type != gso::NONE {
        assert!(header.flags & flags::NEEDS_CSUM != 0 && header.gso_size >= LEAST_SEGMENT);
        assert!(usize::from(header.hdr_len) <= len);
    }
}

impl Port for Wire {
    fn room(&self) -> usize {
        8
    }

    fn send(&mut self, packet: Buffer) {
        look_at(&packet);
        self.sent.push(packet);
    }

    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError> {
        let mut turned = Turned::default();
        turned.sent = self.sent.len() as u64;
        self.sent.drain(..).for_each(|buffer| pool.put(buffer));
        let mut state = self.state.borrow_mut();
        if !state.script.is_over() && state.script.byte() & 3 == 0 {
            state.act();
        }
        for _ in 0..most {
            let Some((header, packet)) = state.coming.pop_front() else { break };
            assert!(packet.len() <= ROOM);
            let Some(mut buffer) = pool.take() else { break };
            buffer.fill(&header, &packet);
            into.push_back(buffer);
        }
        Ok(turned)
    }

    fn wait(
        &mut self,
        _: &[BorrowedFd<'_>],
        _: bool,
        _: Option<Duration>,
    ) -> Result<Readable, HostError> {
        let mut state = self.state.borrow_mut();
        if state.script.is_over() {
            state.waited += 1;
            assert!(state.waited < 1000, "a queue that is told to end does not");
            state.line.stop();
        } else {
            state.act();
        }
        // Whoever looks finds out which of them are.
        Ok((0..3).collect())
    }

    fn carrier(&mut self, _: bool) -> Result<(), HostError> {
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut script = Bytes::new(bytes);
    let how = script.byte();
    let [tx, rx, asks] = [(); 3].map(|()| Pages::new(1));
    for ring in [&tx, &rx, &asks] {
        begin(ring, &mut script);
    }
    let mut takes = Takes::default();
    takes.sg = how & 1 != 0;
    (takes.gso_tcpv4, takes.gso_tcpv6) = (how & 3 == 3, how & 5 == 5);
    takes.headroom = if how & 8 == 0 { 0 } else { 256 };
    let mut features = Features::new(takes, Sums { v4: how & 16 == 0, v6: how & 32 == 0 });
    features.rx_notify = how & 64 == 0;
    let sources = match how & 128 {
        0 => Sources::default(),
        _ => Sources::of(Some([2; 6]), Some(vec![[10, 0, 0, 1].into()])),
    };
    let mut serving = Serving::new(1, sources);
    serving.waiting = Waiting::Sleep;
    let (serving, line) = (Arc::new(serving), Control::new().unwrap());
    let guest = Guest::default();
    // Rings are not the guest's pages here: what is counted as mapped is what stays kept.
    let live = Arc::new(());
    let map = |ring: &Pages| Granted::new(ring, 0, 1, &live);
    let bells = [1, 2].map(|port| Bell::new(EventPort(port)));
    let ropes = bells.each_ref().map(Bell::rope);
    let [tx_bell, rx_bell] = bells;
    let link = Link::new(map(&tx), map(&rx), Channels::Split { tx: tx_bell, rx: rx_bell });
    let control = Back::attach(map(&asks)).ok();
    let state = Rc::new(RefCell::new(State {
        script,
        guest: guest.clone(),
        tx,
        rx,
        asks,
        control,
        ropes,
        serving: Arc::clone(&serving),
        line: Arc::clone(&line),
        coming: VecDeque::new(),
        waited: 0,
    }));
    let wire = Wire { state: Rc::clone(&state), sent: Vec::new() };
    let stats = Arc::new(Stats::default());
    let parts = (PEER, link, features);
    let ends = ends_of_rings(0, parts, guest.clone(), &serving, &stats).unwrap();
    let ended = Queue::new(0, ends, wire, Arc::clone(&serving), line, stats).run();
    assert!(matches!(ended, Ended::Stopped | Ended::Fault(_)), "{ended:?}");
    guest.check();
    drop((state, serving));
    assert_eq!(guest.mapped(), 0, "pages stay mapped: {ended:?}");
});
