//! Both ends of one ring: every request arrives once and in order, every response too, whatever
//! the interleaving, the size of the ring and the place where the indexes wrap.

mod pages;

use std::collections::VecDeque;

use hypervisor::memory::Memory;
use pages::Pages;
use proptest::prelude::*;
use ring::wire::blkif::{Blkif, Layout, Native, Request, Response, Status, X86_32, X86_64};
use ring::{Back, Front, Full, Notify, Recheck, ResponseSlot, RingIndex};

fn ends<L: Layout>(pages: usize, start: u32) -> (Front<Blkif<L>, Pages>, Back<Blkif<L>, Pages>) {
    let memory = Pages::new(pages);
    let front = Front::init_at(memory.clone(), RingIndex(start)).unwrap();
    let back = Back::attach(memory).unwrap();
    (front, back)
}

fn answer(request: &Request) -> Response {
    Response::to(request, Status::OKAY)
}

#[test]
fn a_request_goes_there_and_its_response_comes_back() {
    let (mut front, mut back) = ends::<Native>(1, 0);
    assert_eq!((front.slots(), back.slots()), (32, 32));
    assert!(back.take_request().unwrap().is_none());

    front.push(&Request::flush(42)).unwrap();
    // What is not published is not there.
    assert!(back.take_request().unwrap().is_none());
    // A new ring's events are armed for the first message of each kind.
    assert_eq!(front.publish(), Notify::Needed);
    assert_eq!(front.publish(), Notify::No);

    let (request, slot) = back.take_request().unwrap().unwrap();
    assert_eq!(request, Request::flush(42));
    assert_eq!((back.outstanding(), front.outstanding()), (1, 1));
    back.respond(slot, &answer(&request));
    assert!(front.take_response().unwrap().is_none());
    assert_eq!(back.publish(), Notify::Needed);
    let response = front.take_response().unwrap().unwrap();
    assert_eq!(response, Response { id: 42, operation: 3, status: Status::OKAY });
    assert_eq!((back.outstanding(), front.outstanding(), front.free()), (0, 0, 32));
}

#[test]
fn a_new_ring_shows_nothing_of_what_its_pages_held() {
    let memory = Pages::new(1);
    memory.fill(0, memory.len(), 0xA5).unwrap();
    let _front = Front::<Blkif<X86_32>, _>::init_at(memory.clone(), RingIndex(8)).unwrap();
    let mut ring = [0; 64 + 32 * 108];
    memory.read_at(0, &mut ring).unwrap();
    // `SHARED_RING_INIT` in io/ring.h, begun at 8.
    assert_eq!(ring[..16], [8, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0]);
    assert!(ring[16..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_full_ring_takes_no_more_and_gives_all_back() {
    for start in [0, u32::MAX - 40] {
        let (mut front, mut back) = ends::<X86_32>(2, start);
        for round in 0..5_u64 {
            for id in 0..64 {
                front.push(&Request::flush(round * 100 + id)).unwrap();
            }
            assert_eq!(front.push(&Request::flush(9)), Err(Full));
            let _ = front.publish();
            let mut held = Vec::new();
            while let Some(taken) = back.take_request().unwrap() {
                held.push(taken);
            }
            assert_eq!(held.len(), 64);
            // Answered in another order than asked.
            for (request, slot) in held.into_iter().rev() {
                back.respond(slot, &answer(&request));
            }
            // Written responses free nothing before they are published.
            assert!(front.take_response().unwrap().is_none());
            let _ = back.publish();
            for id in (0..64).rev() {
                assert_eq!(front.take_response().unwrap().unwrap().id, round * 100 + id);
            }
            assert!(front.take_response().unwrap().is_none());
        }
    }
}

#[test]
fn only_a_step_over_the_armed_event_notifies() {
    let (mut front, mut back) = ends::<X86_64>(1, u32::MAX - 1);
    let push = |front: &mut Front<_, _>| {
        front.push(&Request::flush(0)).unwrap();
        front.publish()
    };
    assert_eq!(push(&mut front), Notify::Needed);
    assert_eq!(push(&mut front), Notify::No);
    // There is something: rearming says so and leaves the event alone.
    assert_eq!(back.rearm().unwrap(), Recheck::More);
    assert_eq!(push(&mut front), Notify::No);
    let mut held = Vec::new();
    while let Some((_, slot)) = back.take_request().unwrap() {
        held.push(slot);
    }
    assert_eq!(push(&mut front), Notify::No);
    held.push(back.take_request().unwrap().unwrap().1);
    assert_eq!(back.rearm().unwrap(), Recheck::Quiet);
    assert_eq!(push(&mut front), Notify::Needed);
    held.push(back.take_request().unwrap().unwrap().1);
    held.into_iter().for_each(ResponseSlot::abandon);
}

#[test]
fn who_waits_for_several_is_told_of_each_that_comes() {
    let (mut front, mut back) = ends::<X86_64>(1, u32::MAX - 1);
    let push = |front: &mut Front<_, _>| {
        front.push(&Request::flush(0)).unwrap();
        front.publish()
    };
    assert_eq!(push(&mut front), Notify::Needed);
    assert_eq!(back.rearm_for(1).unwrap(), Recheck::More);
    assert_eq!(back.rearm_for(3).unwrap(), Recheck::Quiet);
    assert_eq!(push(&mut front), Notify::Needed);
    assert_eq!(back.rearm_for(3).unwrap(), Recheck::Quiet);
    assert_eq!(push(&mut front), Notify::Needed);
    assert_eq!(back.rearm_for(3).unwrap(), Recheck::More);
    let held: Vec<_> = (0..3).map(|_| back.take_request().unwrap().unwrap().1).collect();
    assert_eq!(back.rearm_for(1).unwrap(), Recheck::Quiet);
    assert_eq!(push(&mut front), Notify::Needed);
    held.into_iter().for_each(ResponseSlot::abandon);
}

#[test]
fn a_resumed_back_owes_what_was_taken_and_finds_what_was_not() {
    let (mut front, mut back) = ends::<Native>(1, u32::MAX - 3);
    for id in 0..10 {
        front.push(&Request::flush(id)).unwrap();
    }
    let _ = front.publish();
    let mut held: VecDeque<_> = (0..6).map(|_| back.take_request().unwrap().unwrap()).collect();
    for _ in 0..2 {
        let (request, slot) = held.pop_front().unwrap();
        back.respond(slot, &answer(&request));
    }
    let _ = back.publish();
    held.into_iter().for_each(|(_, slot)| slot.abandon());
    let (taken, answered) = (back.taken(), back.published());
    let memory = back.into_memory();

    let mut back = Back::<Blkif, _>::resume(memory.clone(), taken, answered).unwrap();
    let owed: Vec<_> = back.owed().collect();
    assert_eq!(owed.len(), 4);
    for (id, slot) in (2..).zip(owed) {
        assert_eq!(slot.index(), answered.add(u32::try_from(id).unwrap() - 2));
        back.respond(slot, &Response { id, operation: 3, status: Status::OKAY });
    }
    let _ = back.publish();
    while let Some((request, slot)) = back.take_request().unwrap() {
        back.respond(slot, &answer(&request));
    }
    let _ = back.publish();
    for id in 0..10 {
        assert_eq!(front.take_response().unwrap().unwrap().id, id);
    }
    assert!(Back::<Blkif, _>::resume(memory.clone(), taken.add(40), answered).is_err());
    assert!(Back::<Blkif, _>::resume(memory, taken.add(20), answered.add(20)).is_err());
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "dropped without an answer")]
fn a_slot_dropped_unanswered_is_a_defect() {
    let (mut front, mut back) = ends::<Native>(1, 0);
    front.push(&Request::flush(0)).unwrap();
    let _ = front.publish();
    drop(back.take_request().unwrap().unwrap());
}

/// One step of either end.
#[derive(Clone, Debug)]
enum Step {
    Push,
    PublishRequests,
    Take,
    Respond { oldest: bool },
    PublishResponses,
    TakeResponse,
    SleepBack,
    SleepFront,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Push),
        2 => Just(Step::PublishRequests),
        4 => Just(Step::Take),
        4 => any::<bool>().prop_map(|oldest| Step::Respond { oldest }),
        2 => Just(Step::PublishResponses),
        4 => Just(Step::TakeResponse),
        1 => Just(Step::SleepBack),
        1 => Just(Step::SleepFront),
    ]
}

/// What must hold, kept beside the ring: each end's messages in order, and who sleeps.
#[derive(Default)]
struct Model {
    next: u64,
    pushed: VecDeque<u64>,
    requests: VecDeque<u64>,
    held: VecDeque<(Request, ResponseSlot)>,
    answered: VecDeque<u64>,
    responses: VecDeque<u64>,
    back_sleeps: bool,
    front_sleeps: bool,
}

fn play<L: Layout>(pages: usize, start: u32, steps: &[Step]) {
    let (mut front, mut back) = ends::<L>(pages, start);
    let slots = front.slots() as usize;
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Push => {
                let busy = model.pushed.len()
                    + model.requests.len()
                    + model.held.len()
                    + model.answered.len()
                    + model.responses.len();
                assert_eq!(front.free() as usize, slots - busy);
                let pushed = front.push(&Request::flush(model.next));
                assert_eq!(pushed.is_ok(), busy < slots);
                if pushed.is_ok() {
                    model.pushed.push_back(model.next);
                    model.next += 1;
                }
            }
            Step::PublishRequests => {
                let new = !model.pushed.is_empty();
                model.requests.append(&mut model.pushed);
                let notify = front.publish();
                // Whoever sleeps is woken by something new, and by that only.
                assert!(!(model.back_sleeps && new) || notify.is_needed());
                assert!(new || !notify.is_needed());
                model.back_sleeps &= !notify.is_needed();
            }
            Step::Take => {
                let taken = back.take_request().unwrap();
                assert_eq!(taken.as_ref().map(|(r, _)| r.id), model.requests.pop_front());
                model.held.extend(taken);
            }
            Step::Respond { oldest } => {
                let next = if *oldest { model.held.pop_front() } else { model.held.pop_back() };
                if let Some((request, slot)) = next {
                    back.respond(slot, &answer(&request));
                    model.answered.push_back(request.id);
                }
            }
            Step::PublishResponses => {
                let new = !model.answered.is_empty();
                model.responses.append(&mut model.answered);
                let notify = back.publish();
                assert!(!(model.front_sleeps && new) || notify.is_needed());
                assert!(new || !notify.is_needed());
                model.front_sleeps &= !notify.is_needed();
            }
            Step::TakeResponse => {
                let response = front.take_response().unwrap();
                assert_eq!(response.map(|r| r.id), model.responses.pop_front());
            }
            Step::SleepBack => {
                let quiet = back.rearm().unwrap() == Recheck::Quiet;
                assert_eq!(quiet, model.requests.is_empty());
                model.back_sleeps |= quiet;
            }
            Step::SleepFront => {
                let quiet = front.rearm().unwrap() == Recheck::Quiet;
                assert_eq!(quiet, model.responses.is_empty());
                model.front_sleeps |= quiet;
            }
        }
        assert_eq!(back.outstanding() as usize, model.held.len());
    }
    model.held.into_iter().for_each(|(_, slot)| slot.abandon());
}

proptest! {
    #[test]
    fn any_interleaving_keeps_order_and_wakes_sleepers(
        pages in 1_usize..=2,
        before_wrap in 0_u32..200,
        steps in prop::collection::vec(step(), 0..1500),
    ) {
        let start = 0_u32.wrapping_sub(before_wrap);
        play::<X86_64>(pages, start, &steps);
        play::<X86_32>(pages, start, &steps);
    }
}

/// Two threads that sleep and wake each other only by what the ring says: if a wake-up were lost,
/// both would wait for ever.
#[test]
fn two_threads_that_sleep_finish() {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    const REQUESTS: u64 = if cfg!(miri) { 200 } else { 200_000 };
    const LONG: Duration = Duration::from_secs(60);
    let (mut front, mut back) = ends::<Native>(1, u32::MAX - 1000);
    let (wake_back, back_woken) = channel::<()>();
    let (wake_front, front_woken) = channel::<()>();

    let server = std::thread::spawn(move || {
        let mut served = 0;
        while served < REQUESTS {
            while let Some((request, slot)) = back.take_request().unwrap() {
                assert_eq!(request.id, served);
                back.respond(slot, &answer(&request));
                served += 1;
            }
            if back.publish().is_needed() {
                let _ = wake_front.send(());
            }
            if served < REQUESTS && back.rearm().unwrap() == Recheck::Quiet {
                match back_woken.recv_timeout(LONG) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Timeout) => panic!("a wake-up of the backend was lost"),
                    Err(RecvTimeoutError::Disconnected) => return served,
                }
            }
        }
        served
    });

    let (mut asked, mut answered) = (0, 0);
    while answered < REQUESTS {
        while asked < REQUESTS && front.push(&Request::flush(asked)).is_ok() {
            asked += 1;
        }
        if front.publish().is_needed() {
            let _ = wake_back.send(());
        }
        let before = answered;
        while let Some(response) = front.take_response().unwrap() {
            assert_eq!(response.id, answered);
            answered += 1;
        }
        if answered == before && front.rearm().unwrap() == Recheck::Quiet {
            match front_woken.recv_timeout(LONG) {
                Ok(()) => {}
                Err(error) => panic!("a wake-up of the frontend was lost: {error}"),
            }
        }
    }
    assert_eq!(server.join().unwrap(), REQUESTS);
}
