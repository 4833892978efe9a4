//! A frontend that does what a script says, and what a backend's queue does to it.
//!
//! The queue runs on one thread with the script: the frontend acts whenever the queue goes to
//! sleep, and wherever it is between two requests or two stages.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use blkback::acquire::{GuestMemory, InPage};
use blkback::queue::{Command, Control, Serving};
use blkback::receive::{Answer, Duty, Gathered, RawRequest, Requests, XenRing};
use blkback::segments::Segment as Placed;
use blkback::validate::Refusal;
use hypervisor::memory::Memory;
use hypervisor::{DomId, GrantRef, PAGE_SIZE, PeerFault};
use ring::layout::{HEADER, Word};
use ring::wire::blkif::{
    Abi, Blkif, Discard, Indirect, Kind, Layout, MAX_INDIRECT_PAGES, Request, Segment, Segments,
    Status, Transfer, X86_64, operation,
};
use ring::{Notify, Protocol, Recheck, protocol::SlotBytes};

use crate::bytes::Bytes;
use crate::memory::Pages;
use crate::platform::{FIRST, Guest, PAGES};

/// Sectors of the disk at first, and at most.
pub const SECTORS: u64 = 144;

/// The frontend, shared by all that gives it a turn.
#[derive(Clone)]
pub struct Frontend(Rc<RefCell<State>>);

struct State {
    script: Bytes,
    guest: Guest,
    ring: Pages,
    rope: Arc<AtomicBool>,
    control: Arc<Control>,
    serving: Arc<Serving>,
    /// Requests that were taken and not answered, by index: what is known of each.
    taken: BTreeMap<u32, Taken>,
    answered: u64,
    waited: u32,
}

struct Taken {
    id: u64,
    /// The operations that the answer may echo.
    echo: [u8; 2],
    must_fail: bool,
}

impl Frontend {
    /// One that does what `script` says.
    #[must_use]
    pub fn new(
        script: Bytes,
        guest: &Guest,
        ring: &Pages,
        rope: Arc<AtomicBool>,
        control: &Arc<Control>,
        serving: &Arc<Serving>,
    ) -> Self {
        let (guest, ring) = (guest.clone(), ring.clone());
        let (control, serving) = (Arc::clone(control), Arc::clone(serving));
        let taken = BTreeMap::new();
        let state =
            State { script, guest, ring, rope, control, serving, taken, answered: 0, waited: 0 };
        Self(Rc::new(RefCell::new(state)))
    }

    /// Where the queue sleeps: the frontend does something, or is done. Says whether the backend
    /// would have been woken.
    #[must_use]
    pub fn acts(&self) -> bool {
        let mut state = self.0.borrow_mut();
        if state.script.is_over() {
            state.waited += 1;
            assert!(state.waited < 1000, "a queue that is told to end does not");
            state.control.tell(Command::Drain);
            return true;
        }
        state.act();
        true
    }

    /// Between two steps of the queue: the frontend may do something.
    pub fn may_act(&self) {
        let mut state = self.0.borrow_mut();
        if !state.script.is_over() && state.script.byte() & 3 == 0 {
            state.act();
        }
    }

    /// How many requests were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.0.borrow().answered
    }

    /// How many requests were taken and neither answered nor given up.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.0.borrow().taken.len()
    }
}

impl State {
    fn act(&mut self) {
        let what = self.script.byte();
        match what % 16 {
            0..=5 => self.push_request(),
            6 => {
                let at = self.script.word() as usize % self.ring.len();
                let len = usize::from(self.script.byte()).min(self.ring.len() - at);
                let bytes = self.script.some(len);
                self.ring.write_at(at, &bytes).unwrap();
            }
            7 => {
                let by = u32::from(self.script.byte());
                self.produce(by);
            }
            8 => {
                let producer = self.script.word();
                self.write_word(Word::RequestProducer, producer);
            }
            9 | 10 => self.write_list(),
            11 => self.guest.toggle(usize::from(self.script.byte()) % PAGES),
            12 => {
                let commands = [Command::Run, Command::Run, Command::Pause, Command::Drain];
                self.control.tell(commands[usize::from(self.script.byte() & 3)]);
            }
            13 => {
                let sectors = u64::from(self.script.byte()).min(SECTORS);
                self.serving.sectors.store(sectors, Relaxed);
            }
            14 => {
                let event = self.script.word();
                self.write_word(Word::ResponseEvent, event);
            }
            _ => self.control.tell(Command::Run),
        }
        self.rope.store(what & 0x80 == 0, Relaxed);
    }

    fn read_word(&self, word: Word) -> u32 {
        let mut bytes = [0; 4];
        self.ring.read_at(word.offset(), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write_word(&self, word: Word, value: u32) {
        self.ring.write_at(word.offset(), &value.to_le_bytes()).unwrap();
    }

    fn produce(&self, by: u32) {
        self.write_word(
            Word::RequestProducer,
            self.read_word(Word::RequestProducer).wrapping_add(by),
        );
    }

    /// A request that is almost as it should be.
    fn push_request(&mut self) {
        let request = self.request();
        let mut slot = <X86_64 as Layout>::Slot::ZERO;
        Blkif::<X86_64>::encode_request(&request, &mut slot);
        // A segment count that the type cannot have, now and then.
        let lie = self.script.byte();
        if lie & 0xF0 == 0xF0 {
            slot[1] = lie;
        }
        let producer = self.read_word(Word::RequestProducer);
        let number = (producer % Abi::X86_64.slots(self.ring.len() / PAGE_SIZE)) as usize;
        self.ring.write_at(HEADER + number * slot.len(), &slot).unwrap();
        self.produce(1);
    }

    fn request(&mut self) -> Request {
        let script = &mut self.script;
        let (what, id) = (script.byte(), u64::from(script.byte()));
        let sector = script.sector(SECTORS);
        if what % 8 == operation::DISCARD {
            let sectors = script.sector(SECTORS);
            return Request::discard(id, Discard { sector, sectors, secure: what & 0x80 != 0 });
        }
        if what % 8 == operation::INDIRECT {
            let operation = script.byte() % 8;
            let count = u16::from(script.byte()) | u16::from(what & 0x80) << 5;
            let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
            for gref in &mut grefs {
                *gref = reference(script.byte());
            }
            return Request::indirect(id, Indirect { operation, sector, count, grefs });
        }
        let count = usize::from(script.byte() % 12);
        let list: Vec<Segment> = (0..count).map(|_| segment(script)).collect();
        let segments = Segments::new(&list).unwrap();
        let transfer = Transfer { sector, segments };
        match what % 8 {
            0 => Request::read(id, transfer),
            1 => Request::write(id, transfer),
            2 => Request::barrier(id, transfer),
            3 => Request { operation: 3, id, handle: 0, kind: Kind::Flush(transfer) },
            _ => Request { operation: what, id, handle: 0, kind: Kind::Unknown(what | 8) },
        }
    }

    /// Segments in a page, for indirect requests to name.
    fn write_list(&mut self) {
        let page = usize::from(self.script.byte()) % (PAGES - 2);
        let first = usize::from(self.script.byte());
        for n in 0..usize::from(self.script.byte() % 32) {
            let encoded = segment(&mut self.script).encode();
            let at = page * PAGE_SIZE + (first + n) * Segment::SIZE;
            self.guest.pages.write_at(at, &encoded).unwrap();
        }
    }
}

fn segment(script: &mut Bytes) -> Segment {
    let (gref, sectors) = (reference(script.byte()), script.byte());
    // As a rule within the page.
    let mask = if sectors & 0x88 == 0x88 { 0xF } else { 7 };
    Segment { gref, first: sectors & mask, last: (sectors >> 4) & mask }
}

/// As a rule one that is granted.
fn reference(byte: u8) -> GrantRef {
    match byte {
        0xF0.. => GrantRef(u32::from(byte) << 24),
        byte => GrantRef(FIRST - 1 + u32::from(byte) % (PAGES as u32 + 2)),
    }
}

/// A ring, and beside it an account of what was taken and answered.
pub struct Audited {
    ring: XenRing<X86_64, Pages>,
    front: Frontend,
}

impl Audited {
    /// `ring`, whose other end is `front`'s.
    #[must_use]
    pub fn new(ring: XenRing<X86_64, Pages>, front: &Frontend) -> Self {
        Self { ring, front: front.clone() }
    }
}

impl Requests for Audited {
    type Raw = Request;
    type Slot = Duty;
    type Place = InPage;

    fn take(&mut self) -> Result<Option<RawRequest<Request, Duty>>, PeerFault> {
        self.front.may_act();
        let taken = self.ring.take()?;
        if let Some(RawRequest { asked, slot }) = &taken {
            let mut state = self.front.0.borrow_mut();
            let before = state.taken.insert(slot.slot().index().0, known(asked));
            assert!(before.is_none(), "a slot was given out twice");
            assert!(state.taken.len() <= self.ring.slots() as usize);
        }
        Ok(taken)
    }

    fn gather<G: GuestMemory<Place = InPage>>(
        &mut self,
        asked: &Request,
        memory: &mut G,
        unit: u32,
        into: &mut Vec<Placed<InPage>>,
    ) -> Result<Gathered, Refusal> {
        self.ring.gather(asked, memory, unit, into)
    }

    fn answer(&mut self, slot: Duty, answer: Answer) {
        let response = slot.response(answer);
        let mut state = self.front.0.borrow_mut();
        let taken = state.taken.remove(&slot.slot().index().0).expect("an answer to nothing");
        assert_eq!(response.id, taken.id);
        assert!(taken.echo.contains(&response.operation), "{response:?}");
        assert!(!(taken.must_fail && response.status == Status::OKAY), "{response:?}");
        state.answered += 1;
        drop(state);
        self.ring.answer(slot, answer);
    }

    fn abandon(&mut self, slot: Duty) {
        let known = self.front.0.borrow_mut().taken.remove(&slot.slot().index().0);
        assert!(known.is_some(), "nothing to abandon");
        self.ring.abandon(slot);
    }

    fn publish(&mut self) -> Notify {
        self.front.may_act();
        self.ring.publish()
    }

    fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        self.ring.rearm()
    }

    fn slots(&self) -> u32 {
        self.ring.slots()
    }

    fn indexes(&self) -> (u32, u32) {
        self.ring.indexes()
    }
}

/// What can be said of a request without the rules that the backend has.
fn known(asked: &Request) -> Taken {
    let plain = |must_fail| Taken { id: asked.id, echo: [asked.operation; 2], must_fail };
    match &asked.kind {
        Kind::Read(transfer) => plain(impossible(transfer, true)),
        Kind::Write(transfer) | Kind::Barrier(transfer) | Kind::Flush(transfer) => {
            plain(impossible(transfer, false))
        }
        Kind::Discard(discard) => plain(
            discard.sectors == 0
                || discard.sector.checked_add(discard.sectors).is_none_or(|end| end > SECTORS),
        ),
        Kind::Indirect(indirect) => Taken {
            id: asked.id,
            echo: [asked.operation, indirect.operation],
            must_fail: indirect.sector >= SECTORS || indirect.operation > operation::WRITE,
        },
        _ => plain(true),
    }
}

/// Whether no backend may do this, as long as the disk has no more than [`SECTORS`].
fn impossible(transfer: &Transfer, into_guest: bool) -> bool {
    let Ok(list) = transfer.segments.get() else { return true };
    let mut sectors = 0;
    for segment in list {
        if segment.last > 7 || segment.first > segment.last || !Guest::may(segment.gref, into_guest)
        {
            return true;
        }
        sectors += u64::from(segment.last - segment.first) + 1;
    }
    sectors > 0 && transfer.sector.checked_add(sectors).is_none_or(|end| end > SECTORS)
}

/// Sets the ring's first index, so that indexes wrap in some runs.
pub fn begin(ring: &Pages, script: &mut Bytes) {
    let start = match script.byte() {
        byte @ 0..128 => u32::from(byte),
        byte => u32::MAX - u32::from(byte - 128),
    };
    for word in [Word::RequestProducer, Word::ResponseProducer] {
        ring.write_at(word.offset(), &start.to_le_bytes()).unwrap();
    }
}

/// The backend's end of the ring.
///
/// # Panics
///
/// A new ring is not in order.
#[must_use]
pub fn attach(ring: &Pages, guest: DomId) -> XenRing<X86_64, Pages> {
    XenRing::attach(ring.clone(), guest).unwrap()
}
