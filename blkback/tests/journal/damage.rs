//! Journals and rings of which something is not as it was left.

use std::rc::Rc;

use blkback::journal::{Journal, Journaled, Owed, Refused, mark, words};
use blkback::receive::{Answer, Requests, XenRing};
use hypervisor::DomId;
use proptest::prelude::*;
use ring::wire::blkif::{Blkif, Discard, Indirect, Native, Request, Segment, Segments, Transfer};
use ring::{Front, RingIndex};

use crate::memory::{Kept, Ring, Shared, identity};

const SLOTS: u32 = 8;
const MARK: u64 = 77;

fn requests() -> Vec<Request> {
    let segment = |n: u32| Segment { gref: hypervisor::GrantRef(n), first: 0, last: 7 };
    let many = Segments::new(&(0..11).map(segment).collect::<Vec<_>>()).unwrap();
    let transfer = Transfer { sector: 800, segments: many };
    let grefs = std::array::from_fn(|n| hypervisor::GrantRef(n as u32));
    let indirect = Indirect { operation: 1, sector: 64, count: 32, grefs };
    vec![
        Request::write(1, transfer.clone()),
        Request::flush(2),
        Request::discard(3, Discard { sector: 8, sectors: 16, secure: true }),
        Request::indirect(4, indirect),
        Request::read(5, transfer),
    ]
}

/// A ring whose backend was killed with four of five requests owed: the second was answered, and shown.
fn left() -> Rc<Shared> {
    let shared = Shared::new(SLOTS);
    let guest = Ring { shared: Rc::clone(&shared), mortal: false };
    let mut front = Front::<Blkif<Native>, _>::init_at(guest, RingIndex(u32::MAX - 2)).unwrap();
    let ring = Ring { shared: Rc::clone(&shared), mortal: true };
    let (journal, owed) = Journal::begin(Kept(Rc::clone(&shared)), &identity(SLOTS), &ring, MARK);
    mark(&ring, MARK);
    let peer = DomId::new(5).unwrap();
    let (back, slots) =
        XenRing::<Native, _>::resume(ring, peer, owed.taken, owed.published).unwrap();
    let mut back = Journaled::new(back, journal, owed.requests, slots);
    for request in requests() {
        front.push(&request).unwrap();
    }
    let _ = front.publish();
    for request in requests() {
        let raw = back.take().unwrap().unwrap();
        if request.id == 2 {
            back.answer(raw.slot, Answer::Done);
        } else {
            back.abandon(raw.slot);
        }
    }
    let _ = back.publish();
    shared
}

fn look(shared: &Rc<Shared>) -> Result<Owed, Refused> {
    let ring = Ring { shared: Rc::clone(shared), mortal: true };
    Journal::look(&Kept(Rc::clone(shared)), &identity(SLOTS), &ring)
}

#[test]
fn what_is_owed_is_as_it_was_asked() {
    let owed = look(&left()).unwrap();
    let asked: Vec<_> = owed.requests.iter().map(|(request, _)| request.clone()).collect();
    let wanted: Vec<_> = requests().into_iter().filter(|request| request.id != 2).collect();
    assert_eq!(asked, wanted);
    assert_eq!((owed.taken.0, owed.published.0), (2, u32::MAX - 1));
}

#[test]
fn no_bit_of_what_is_owed_changes_unseen() {
    let whole = look(&left()).unwrap();
    let shared = left();
    for at in 0..words(SLOTS) {
        let was = shared.word(at);
        for bit in 0..64 {
            shared.set_word(at, was ^ 1 << bit);
            if let Ok(other) = look(&shared) {
                assert_eq!(other.requests, whole.requests, "bit {bit} of word {at}");
            }
        }
        shared.set_word(at, was);
    }
    // And what is of a request is seen, not passed over.
    let entry = 512 + 16 * whole.requests[0].1 as usize;
    shared.set_word(entry + 9, shared.word(entry + 9) ^ 1);
    assert_eq!(look(&shared).unwrap_err(), Refused::Torn { entry: whole.requests[0].1 });
}

#[test]
fn a_ring_that_says_something_else_is_refused() {
    let shared = left();
    let published = u32::MAX - 1;
    for off in 1..=2 * SLOTS {
        for other in [published.wrapping_add(off), published.wrapping_sub(off)] {
            shared.set_ring(8, &other.to_le_bytes());
            match look(&shared) {
                Err(why) => assert!(matches!(why, Refused::Indexes { .. }), "{why}"),
                // A guest that takes an answer back has that one of its requests done again.
                Ok(owed) => {
                    let ids: Vec<_> = owed.requests.iter().map(|(request, _)| request.id).collect();
                    assert_eq!((other, ids), (published - 1, vec![1, 2, 3, 4, 5]));
                }
            }
        }
    }
    shared.set_ring(8, &published.to_le_bytes());
    // Requests unmade, and more than there is room for.
    for produced in [1_u32, 2 + SLOTS - 3] {
        shared.set_ring(0, &produced.to_le_bytes());
        assert!(matches!(look(&shared), Err(Refused::Indexes { .. })), "{produced}");
    }
    shared.set_ring(0, &2_u32.to_le_bytes());
    assert!(look(&shared).is_ok());
    shared.set_ring(56, &78_u64.to_le_bytes());
    assert_eq!(look(&shared).unwrap_err(), Refused::Mark { found: 78, mark: MARK });
}

proptest! {
    #[test]
    fn any_words_are_met_without_a_panic(
        changes in proptest::collection::vec((0..words(SLOTS), any::<u64>()), 0..20),
        header in any::<[u8; 12]>(),
        keep in any::<bool>(),
    ) {
        let shared = left();
        for (at, value) in changes {
            if at > 64 || !keep {
                shared.set_word(at, value);
            }
        }
        if !keep {
            shared.set_ring(0, &header);
        }
        if let Ok(owed) = look(&shared) {
            let ring = Ring { shared: Rc::clone(&shared), mortal: true };
            let _ = Journal::resume(Kept(Rc::clone(&shared)), &identity(SLOTS), &owed);
            let peer = DomId::new(5).unwrap();
            let resumed = XenRing::<Native, _>::resume(ring, peer, owed.taken, owed.published);
            let (_, slots) = resumed.expect("what was looked at can be resumed");
            prop_assert_eq!(slots.len(), owed.requests.len());
            for slot in slots {
                slot.abandon();
            }
        }
    }
}
