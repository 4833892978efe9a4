//! Publication and rearming under every ordering that the memory model allows.
//!
//! The roles run over words that are loom's atomics and slots that are loom's cells: a slot read
//! before its publication is seen would be a data race, and a wake-up lost would be a deadlock;
//! loom reports both. Run with `RUSTFLAGS="--cfg loom" cargo test -p domkit-ring --release --test
//! loom_ring`.
#![cfg(loom)]
#![expect(unsafe_code, reason = "loom's cells hand out raw pointers")]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Arc, Notify as Wake};
use loom::thread;
use ring::layout::{HEADER, Word};
use ring::shared::Words;
use ring::{Back, Front, Protocol, Recheck, ResponseSlot, RingIndex};

/// The smallest protocol: a word there, a word back.
struct Echo;

impl Protocol for Echo {
    type Request = u32;
    type Response = u32;
    type Slot = [u8; 4];
    type Answer = [u8; 4];

    fn decode_request(slot: &[u8; 4]) -> u32 {
        u32::from_le_bytes(*slot)
    }

    fn encode_request(request: &u32, slot: &mut [u8; 4]) {
        *slot = request.to_le_bytes();
    }

    fn decode_response(answer: &[u8; 4]) -> u32 {
        u32::from_le_bytes(*answer)
    }

    fn encode_response(response: &u32, answer: &mut [u8; 4]) {
        *answer = response.to_le_bytes();
    }
}

/// A ring of two slots.
struct Model {
    words: [AtomicU32; 4],
    slots: [UnsafeCell<[u8; 4]>; 2],
}

/// One end's view of it. Without `FENCE` it leaves out what `xen_mb()` stands for in ring.h.
struct View<const FENCE: bool>(Arc<Model>);

impl<const FENCE: bool> View<FENCE> {
    fn pair() -> (Self, Self) {
        let model = Arc::new(Model {
            words: std::array::from_fn(|_| AtomicU32::new(0)),
            slots: std::array::from_fn(|_| UnsafeCell::new([0; 4])),
        });
        (Self(model.clone()), Self(model))
    }

    fn slot(&self, offset: usize) -> Option<&UnsafeCell<[u8; 4]>> {
        self.0.slots.get(offset.checked_sub(HEADER)? / 4)
    }
}

impl<const FENCE: bool> Words for View<FENCE> {
    fn bytes(&self) -> usize {
        HEADER + 2 * 4
    }

    fn load(&self, word: Word) -> u32 {
        self.0.words[word.offset() / 4].load(Ordering::Acquire)
    }

    fn store(&self, word: Word, value: u32) {
        self.0.words[word.offset() / 4].store(value, Ordering::Release);
    }

    fn fence(&self) {
        if FENCE {
            fence(Ordering::SeqCst);
        }
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let slot = self.slot(offset).unwrap();
        // SAFETY: loom fails the model where another thread writes the cell meanwhile.
        slot.with(|bytes| into.copy_from_slice(unsafe { &*bytes }));
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        // The header's padding is not modelled.
        let Some(slot) = self.slot(offset) else { return };
        // SAFETY: loom fails the model where another thread reaches the cell meanwhile.
        slot.with_mut(|bytes| unsafe { &mut *bytes }.copy_from_slice(from));
    }
}

/// Explores `model` with as many preemptions as keep it to seconds.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

/// Takes what is there, answers it, and returns how much that was.
fn serve<M: Words>(back: &mut Back<Echo, M>) -> u32 {
    let mut served = 0;
    while let Some((request, slot)) = back.take_request().unwrap() {
        back.respond(slot, &(request + 100));
        served += 1;
    }
    served
}

#[test]
fn what_is_published_is_whole() {
    explore(|| {
        let (ours, theirs) = View::<true>::pair();
        let mut front = Front::<Echo, _>::init_at(ours, RingIndex(u32::MAX)).unwrap();
        let server = thread::spawn(move || {
            let mut back = Back::<Echo, _>::attach(theirs).unwrap();
            let mut served = 0;
            // Two looks: any number of requests may be there at each.
            for _ in 0..2 {
                while let Some((request, slot)) = back.take_request().unwrap() {
                    assert_eq!(request, 7 + served);
                    back.respond(slot, &(request + 100));
                    served += 1;
                }
                let _ = back.publish();
            }
            served
        });
        let mut answers = 0;
        for request in 7..9 {
            front.push(&request).unwrap();
            let _ = front.publish();
            while let Some(response) = front.take_response().unwrap() {
                assert_eq!(response, 107 + answers);
                answers += 1;
            }
        }
        let served = server.join().unwrap();
        while let Some(response) = front.take_response().unwrap() {
            assert_eq!(response, 107 + answers);
            answers += 1;
        }
        assert_eq!(answers, served);
    });
}

/// A backend that sleeps whenever the ring is quiet gets every request of a frontend that notifies
/// only when told to.
#[test]
fn no_wake_up_for_a_request_is_lost() {
    explore(|| {
        let (ours, theirs) = View::<true>::pair();
        let mut front = Front::<Echo, _>::init(ours).unwrap();
        let mut back = Back::<Echo, _>::attach(theirs).unwrap();
        let wake = Arc::new(Wake::new());
        let woken = wake.clone();
        let server = thread::spawn(move || {
            let mut held: Vec<ResponseSlot> = Vec::new();
            while held.len() < 2 {
                while let Some((_, slot)) = back.take_request().unwrap() {
                    held.push(slot);
                }
                if held.len() < 2 && back.rearm().unwrap() == Recheck::Quiet {
                    woken.wait();
                }
            }
            held.into_iter().for_each(ResponseSlot::abandon);
        });
        for request in 0..2 {
            front.push(&request).unwrap();
            if front.publish().is_needed() {
                wake.notify();
            }
        }
        server.join().unwrap();
    });
}

/// The same for responses.
#[test]
fn no_wake_up_for_a_response_is_lost() {
    explore(|| {
        let (ours, theirs) = View::<true>::pair();
        let mut front = Front::<Echo, _>::init(ours).unwrap();
        let mut back = Back::<Echo, _>::attach(theirs).unwrap();
        for request in 0..2 {
            front.push(&request).unwrap();
        }
        let _ = front.publish();
        let wake = Arc::new(Wake::new());
        let woken = wake.clone();
        let server = thread::spawn(move || {
            while let Some((request, slot)) = back.take_request().unwrap() {
                back.respond(slot, &request);
                if back.publish().is_needed() {
                    wake.notify();
                }
            }
        });
        let mut answers = 0;
        while answers < 2 {
            while let Some(response) = front.take_response().unwrap() {
                assert_eq!(response, answers);
                answers += 1;
            }
            if answers < 2 && front.rearm().unwrap() == Recheck::Quiet {
                woken.wait();
            }
        }
        server.join().unwrap();
    });
}

/// Whether there is an ordering in which the backend sleeps, the frontend publishes a request, and
/// nobody notifies.
fn request_can_be_missed<const FENCE: bool>() -> bool {
    let missed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let found = missed.clone();
    explore(move || {
        let (ours, theirs) = View::<FENCE>::pair();
        let mut front = Front::<Echo, _>::init(ours).unwrap();
        let mut back = Back::<Echo, _>::attach(theirs).unwrap();
        // A first request moves the event off where a new ring has it armed.
        front.push(&0).unwrap();
        let _ = front.publish();
        let server = thread::spawn(move || {
            let served = serve(&mut back);
            served == 1 && back.rearm().unwrap() == Recheck::Quiet
        });
        front.push(&1).unwrap();
        let notified = front.publish().is_needed();
        if server.join().unwrap() && !notified {
            found.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    missed.load(std::sync::atomic::Ordering::Relaxed)
}

/// The same for a response.
fn response_can_be_missed<const FENCE: bool>() -> bool {
    let missed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let found = missed.clone();
    explore(move || {
        let (ours, theirs) = View::<FENCE>::pair();
        let mut front = Front::<Echo, _>::init(ours).unwrap();
        let mut back = Back::<Echo, _>::attach(theirs).unwrap();
        front.push(&0).unwrap();
        front.push(&1).unwrap();
        let _ = front.publish();
        let (request, slot) = back.take_request().unwrap().unwrap();
        back.respond(slot, &request);
        let _ = back.publish();
        let server = thread::spawn(move || {
            assert_eq!(serve(&mut back), 1);
            back.publish().is_needed()
        });
        assert_eq!(front.take_response(), Ok(Some(0)));
        let slept = front.rearm().unwrap() == Recheck::Quiet;
        if !server.join().unwrap() && slept {
            found.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    missed.load(std::sync::atomic::Ordering::Relaxed)
}

/// What the fences are for; and that these models would show it if one were missing.
#[test]
fn only_the_fences_keep_a_wake_up_from_being_lost() {
    assert!(!request_can_be_missed::<true>());
    assert!(!response_can_be_missed::<true>());
    assert!(request_can_be_missed::<false>());
    assert!(response_can_be_missed::<false>());
}

/// Both ends sleep and wake each other.
#[test]
fn two_sleepers_wake_each_other() {
    explore(|| {
        let (ours, theirs) = View::<true>::pair();
        let mut front = Front::<Echo, _>::init_at(ours, RingIndex(u32::MAX)).unwrap();
        let mut back = Back::<Echo, _>::attach(theirs).unwrap();
        let (wake_back, wake_front) = (Arc::new(Wake::new()), Arc::new(Wake::new()));
        let (back_woken, notify_front) = (wake_back.clone(), wake_front.clone());
        let server = thread::spawn(move || {
            let mut served = 0;
            while served < 2 {
                served += serve(&mut back);
                if back.publish().is_needed() {
                    notify_front.notify();
                }
                if served < 2 && back.rearm().unwrap() == Recheck::Quiet {
                    back_woken.wait();
                }
            }
        });
        for request in 0..2 {
            front.push(&request).unwrap();
            if front.publish().is_needed() {
                wake_back.notify();
            }
            loop {
                if let Some(response) = front.take_response().unwrap() {
                    assert_eq!(response, request + 100);
                    break;
                }
                if front.rearm().unwrap() == Recheck::Quiet {
                    wake_front.wait();
                }
            }
        }
        server.join().unwrap();
    });
}
