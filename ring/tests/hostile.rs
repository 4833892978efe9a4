//! A peer that lies: about its indexes, its events, the contents of slots and when it wrote them.
//! What it can do is end its own device; it can make no panic, no over-read, no endless work.

mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hypervisor::GrantRef;
use hypervisor::memory::Memory;
use pages::Pages;
use proptest::prelude::*;
use ring::shared::Words;
use ring::wire::blkif::{
    Blkif, Kind, Native, Request, Response, Segment, Segments, Status, Transfer,
};
use ring::{Back, Fault, Front, Recheck, ResponseSlot, RingIndex};

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

fn lie(memory: &Pages, word: usize, value: u32) {
    memory.write_at(word, &value.to_le_bytes()).unwrap();
}

fn told(memory: &Pages, word: usize) -> u32 {
    let mut bytes = [0; 4];
    memory.read_at(word, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// A ring whose indexes begin at `start`, with its backend and no honest frontend.
fn victim_back(start: u32) -> (Pages, Back<Blkif, Pages>) {
    let memory = Pages::new(1);
    let _front = Front::<Blkif, _>::init_at(memory.clone(), RingIndex(start)).unwrap();
    (memory.clone(), Back::attach(memory).unwrap())
}

/// The same with its frontend, `asked` requests outstanding, and no honest backend.
fn victim_front(start: u32, asked: u64) -> (Pages, Front<Blkif, Pages>) {
    let memory = Pages::new(1);
    let mut front = Front::<Blkif, _>::init_at(memory.clone(), RingIndex(start)).unwrap();
    for id in 0..asked {
        front.push(&Request::flush(id)).unwrap();
    }
    let _ = front.publish();
    (memory, front)
}

#[test]
fn memory_too_small_for_a_ring_is_refused() {
    let fault = Fault::RingTooSmall { bytes: 0, slot: 112 };
    assert_eq!(Front::<Blkif, _>::init(Pages::new(0)).unwrap_err(), fault);
    assert_eq!(Back::<Blkif, _>::attach(Pages::new(0)).unwrap_err(), fault);
}

#[test]
fn a_request_producer_that_goes_back_is_a_fault() {
    for start in [0, 2, u32::MAX - 1] {
        let (memory, mut back) = victim_back(start);
        lie(&memory, REQ_PROD, start.wrapping_add(4));
        let held: Vec<_> = (0..3).map(|_| back.take_request().unwrap().unwrap().1).collect();
        // Under what was taken, and then under what was merely seen.
        for n in [0, 2, 3] {
            lie(&memory, REQ_PROD, start.wrapping_add(n));
            let fault = back.look().unwrap_err();
            assert_eq!(fault.name(), "request_producer");
            assert_eq!(back.rearm().unwrap_err(), fault);
        }
        // One that comes to its senses is served.
        lie(&memory, REQ_PROD, start.wrapping_add(4));
        assert_eq!(back.look(), Ok(1));
        held.into_iter().for_each(ResponseSlot::abandon);
    }
}

#[test]
fn slots_are_not_free_before_their_responses_are_published() {
    let (memory, mut back) = victim_back(0);
    lie(&memory, REQ_PROD, 32);
    while let Some((request, slot)) = back.take_request().unwrap() {
        back.respond(slot, &Response::to(&request, Status::OKAY));
    }
    lie(&memory, REQ_PROD, 33);
    assert_eq!(
        back.take_request().unwrap_err(),
        Fault::RequestProducer { producer: RingIndex(33), consumer: RingIndex(32), free: 0 }
    );
    let _ = back.publish();
    back.take_request().unwrap().unwrap().1.abandon();
}

#[test]
fn attaching_to_a_ring_that_lies_is_refused() {
    let memory = Pages::new(1);
    lie(&memory, RSP_PROD, 5);
    for producer in [4, 38, u32::MAX] {
        lie(&memory, REQ_PROD, producer);
        assert!(Back::<Blkif, _>::attach(memory.clone()).is_err(), "{producer}");
    }
    lie(&memory, REQ_PROD, 37);
    assert_eq!(Back::<Blkif, _>::attach(memory).unwrap().look(), Ok(32));
}

#[test]
fn a_slot_rewritten_after_it_was_taken_changes_nothing() {
    let memory = Pages::new(1);
    let mut front = Front::<Blkif, _>::init(memory.clone()).unwrap();
    let mut back = Back::<Blkif, _>::attach(memory.clone()).unwrap();
    let segment = Segment { gref: GrantRef(7), first: 1, last: 6 };
    let segments = Segments::new(&[segment]).unwrap();
    let asked = Request::write(1, Transfer { sector: 9, segments });
    front.push(&asked).unwrap();
    let _ = front.publish();
    let (taken, slot) = back.take_request().unwrap().unwrap();
    memory.fill(64, 112, 0xFF).unwrap();
    assert_eq!(taken, asked);
    back.respond(slot, &Response::to(&taken, Status::OKAY));
    let _ = back.publish();
    // The answer is whole, its padding too, over whatever the frontend left there.
    let mut answer = [0xAA; 16];
    memory.read_at(64, &mut answer).unwrap();
    assert_eq!(answer, [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_slot_rewritten_while_it_is_taken_is_one_of_many_requests_and_no_more() {
    let (memory, mut back) = victim_back(0);
    let stop = Arc::new(AtomicBool::new(false));
    let rewriter = {
        let (memory, stop) = (memory.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut byte = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                // Atomically, for it is in our process: a plain write would be a data race.
                memory.copy_in(64, &[byte; 32 * 112]);
                byte = byte.wrapping_add(1);
            }
        })
    };
    let mut producer = 0_u32;
    for _ in 0..if cfg!(miri) { 10 } else { 2_000 } {
        producer = producer.wrapping_add(32);
        lie(&memory, REQ_PROD, producer);
        while let Some((request, slot)) = back.take_request().unwrap() {
            if let Kind::Read(data) | Kind::Write(data) = &request.kind {
                // What was decoded stays: two looks at it agree, though its slot does not.
                assert_eq!(data.segments.get(), data.segments.get());
                assert!(data.segments.get().is_ok() == (data.segments.claimed() <= 11));
            }
            back.respond(slot, &Response::to(&request, Status::ERROR));
        }
        let _ = back.publish();
    }
    stop.store(true, Ordering::Relaxed);
    rewriter.join().unwrap();
}

#[test]
fn a_response_producer_beyond_the_requests_made_is_a_fault() {
    for start in [0, u32::MAX - 3] {
        let (memory, mut front) = victim_front(start, 5);
        // Pushed is not published: the backend cannot have seen these.
        front.push(&Request::flush(5)).unwrap();
        for n in [6, 32, 33, u32::MAX] {
            lie(&memory, RSP_PROD, start.wrapping_add(n));
            assert_eq!(front.take_response().unwrap_err().name(), "response_producer");
            assert!(front.rearm().is_err());
        }
        lie(&memory, RSP_PROD, start.wrapping_add(5));
        for _ in 0..3 {
            assert!(front.take_response().unwrap().is_some());
        }
        for n in [2, 4] {
            lie(&memory, RSP_PROD, start.wrapping_add(n));
            assert!(front.look().is_err(), "{n}");
        }
        assert_eq!(front.outstanding(), 3);
    }
}

#[test]
fn an_event_storm_is_answered_by_arithmetic_only() {
    let (memory, mut back) = victim_back(0);
    let mut producer = 0_u32;
    for n in 0..if cfg!(miri) { 50 } else { 10_000_u32 } {
        // The event is always where it makes every response be announced, or nowhere near.
        lie(&memory, RSP_EVENT, if n % 2 == 0 { producer.wrapping_add(1) } else { n << 20 });
        producer = producer.wrapping_add(1);
        lie(&memory, REQ_PROD, producer);
        let (request, slot) = back.take_request().unwrap().unwrap();
        back.respond(slot, &Response::to(&request, Status::OKAY));
        let _ = back.publish();
        assert_eq!(back.publish(), ring::Notify::No);
        // Its own event word is its own to spoil; ours is written afresh each time.
        lie(&memory, REQ_EVENT, n);
        assert_eq!(back.rearm(), Ok(Recheck::Quiet));
        assert_eq!(told(&memory, REQ_EVENT), producer.wrapping_add(1));
        assert_eq!(told(&memory, RSP_PROD), producer);
    }
}

/// Something a hostile peer, or its victim, does.
#[derive(Clone, Debug)]
enum Step {
    Lie { word: usize, value: u32 },
    Near { word: usize, by: i8 },
    Scribble { at: usize, bytes: Vec<u8> },
    Take,
    Answer,
    Publish,
    Rearm,
}

fn step() -> impl Strategy<Value = Step> {
    let word = prop_oneof![Just(REQ_PROD), Just(REQ_EVENT), Just(RSP_PROD), Just(RSP_EVENT)];
    prop_oneof![
        1 => (word.clone(), any::<u32>()).prop_map(|(word, value)| Step::Lie { word, value }),
        4 => (word, -3_i8..40).prop_map(|(word, by)| Step::Near { word, by }),
        2 => (0_usize..4032, prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Step::Scribble { at, bytes }),
        4 => Just(Step::Take),
        3 => Just(Step::Answer),
        2 => Just(Step::Publish),
        1 => Just(Step::Rearm),
    ]
}

/// What both victims have in common: the peer's doing.
fn harm(memory: &Pages, step: &Step) {
    match step {
        Step::Lie { word, value } => lie(memory, *word, *value),
        Step::Near { word, by } => {
            lie(memory, *word, told(memory, *word).wrapping_add_signed(i32::from(*by)));
        }
        Step::Scribble { at, bytes } => {
            memory.write_at(*at + 64 - bytes.len().min(64), bytes).unwrap();
        }
        Step::Take | Step::Answer | Step::Publish | Step::Rearm => {}
    }
}

proptest! {
    #[test]
    fn a_back_survives_any_frontend(
        start: u32,
        steps in prop::collection::vec(step(), 0..600),
    ) {
        let (memory, mut back) = victim_back(start);
        let mut held = Vec::new();
        for step in steps {
            harm(&memory, &step);
            match step {
                Step::Take => {
                    let mut taken = 0;
                    while let Ok(Some((_, slot))) = back.take_request() {
                        held.push(slot);
                        taken += 1;
                    }
                    prop_assert!(taken <= back.slots());
                }
                Step::Answer => {
                    if let Some(slot) = held.pop() {
                        let response = Response { id: 0, operation: 0, status: Status::OKAY };
                        back.respond(slot, &response);
                    }
                }
                Step::Publish => {
                    let _ = back.publish();
                    prop_assert!(back.published().since(RingIndex(start)) <= 1 << 20);
                }
                Step::Rearm => {
                    let _ = back.rearm();
                }
                Step::Lie { .. } | Step::Near { .. } | Step::Scribble { .. } => {}
            }
            prop_assert_eq!(back.outstanding() as usize, held.len());
            prop_assert!(held.len() <= 32);
        }
        held.into_iter().for_each(ResponseSlot::abandon);
    }

    #[test]
    fn a_front_survives_any_backend(
        start: u32,
        steps in prop::collection::vec(step(), 0..600),
    ) {
        let (memory, mut front) = victim_front(start, 0);
        let (mut asked, mut answered) = (0_u64, 0_u64);
        for step in steps {
            harm(&memory, &step);
            match step {
                Step::Take => {
                    while let Ok(Some(_)) = front.take_response() {
                        answered += 1;
                    }
                }
                Step::Answer => asked += u64::from(front.push(&Request::flush(asked)).is_ok()),
                Step::Publish => {
                    let _ = front.publish();
                }
                Step::Rearm => {
                    let _ = front.rearm();
                }
                Step::Lie { .. } | Step::Near { .. } | Step::Scribble { .. } => {}
            }
            // Never more answers than questions, whatever the backend says.
            prop_assert_eq!(asked - answered, u64::from(front.outstanding()));
            prop_assert!(front.outstanding() <= front.slots());
        }
    }

    /// Every producer index there is: taken as it is where it is possible, else a fault.
    #[test]
    fn a_producer_index_is_possible_or_a_fault(start: u32, ahead in prop_oneof![0_u32..70, any::<u32>()]) {
        let (memory, mut back) = victim_back(start);
        lie(&memory, REQ_PROD, start.wrapping_add(ahead));
        prop_assert_eq!(back.look().is_ok(), ahead <= 32);
        prop_assert_eq!(Back::<Blkif<Native>, _>::attach(memory).is_ok(), ahead <= 32);
    }
}
