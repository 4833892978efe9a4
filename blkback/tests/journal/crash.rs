//! All that two slots and a few requests can come to, and a kill after each store of it; and after each store
//! of what the next process does, too.
//!
//! The guest keeps its ring full until all its requests are made. A process chooses what to do next
//! among: take a request, answer any that it has, publish. Choices are gone through exhaustively.

use std::collections::BTreeSet;
use std::rc::Rc;

use blkback::journal::{Journal, Journaled, Noted, mark};
use blkback::receive::{Answer, Duty, Requests, XenRing};
use hypervisor::DomId;
use ring::wire::blkif::{Blkif, Native, Request, Response, Segment, Segments, Status, Transfer};
use ring::{Front, RingIndex};

use crate::memory::{Kept, Ring, Shared, identity};

const MARK: u64 = 0x1234_5678_9abc_def1;

/// Goes through all choices, one run for each.
#[derive(Default)]
struct Choices {
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    /// One of `options`.
    fn choose(&mut self, options: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, options));
        }
        let (choice, of) = self.made[self.at];
        assert_eq!(of, options, "the same choices lead to the same place");
        self.at += 1;
        choice
    }

    /// Makes the next run another one, if there is one.
    fn next(&mut self) -> bool {
        self.made.truncate(self.at);
        self.at = 0;
        while let Some((choice, of)) = self.made.pop() {
            if choice + 1 < of {
                self.made.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

/// What chooses for a process.
enum Will<'a> {
    Chosen(&'a mut Choices),
    /// Takes all that there is, then answers the oldest of it, or the newest.
    Greedy {
        newest: bool,
    },
}

/// The guest, which is there all the time.
struct Guest {
    front: Front<Blkif<Native>, Ring>,
    requests: u64,
    made: u64,
    answered: BTreeSet<u64>,
}

impl Guest {
    fn new(shared: &Rc<Shared>, requests: u64, start: u32) -> Self {
        let ring = Ring { shared: Rc::clone(shared), mortal: false };
        let front = Front::init_at(ring, RingIndex(start)).unwrap();
        let mut guest = Self { front, requests, made: 0, answered: BTreeSet::new() };
        guest.look();
        guest
    }

    /// What request `id` asks: nothing of one is like another's.
    fn request(id: u64) -> Request {
        let gref = hypervisor::GrantRef(u32::try_from(id).unwrap() * 7);
        let segment = Segment { gref, first: 0, last: (id % 8) as u8 };
        let segments = Segments::new(&vec![segment; 1 + (id % 3) as usize]).unwrap();
        let transfer = Transfer { sector: id * 1000, segments };
        match id % 3 {
            0 => Request::barrier(id, transfer),
            1 => Request::write(id, transfer),
            _ => Request::read(id, transfer),
        }
    }

    /// Takes what was answered, and makes requests as long as there is room.
    fn look(&mut self) {
        while let Some(Response { id, status, .. }) = self.front.take_response().unwrap() {
            assert!(id < self.made, "an answer to request {id}, which was not made");
            assert_eq!(status, status_of(id), "another request's answer");
            assert!(self.answered.insert(id), "request {id} was answered twice");
        }
        while self.made < self.requests && self.front.push(&Self::request(self.made)).is_ok() {
            self.made += 1;
        }
        let _ = self.front.publish();
    }
}

/// Answers in turn, so that one request's is not its neighbour's.
fn answer_of(id: u64) -> Answer {
    [Answer::Done, Answer::Failed, Answer::Unsupported][(id % 3) as usize]
}

fn status_of(id: u64) -> Status {
    [Status::OKAY, Status::ERROR, Status::NOT_SUPPORTED][(id % 3) as usize]
}

type Taken = (u64, Noted<Duty>);
type Process = Journaled<XenRing<Native, Ring>, Kept>;

fn begin(shared: &Rc<Shared>, slots: u32) -> Process {
    let ring = Ring { shared: Rc::clone(shared), mortal: true };
    let kept = Kept(Rc::clone(shared));
    let (journal, owed) = Journal::begin(kept, &identity(slots), &ring, MARK);
    mark(&ring, MARK);
    process(ring, journal, owed)
}

/// The next process. Also the ids that it is to begin with.
fn come_back(shared: &Rc<Shared>, slots: u32) -> (Process, Vec<u64>) {
    let ring = Ring { shared: Rc::clone(shared), mortal: true };
    let kept = Kept(Rc::clone(shared));
    let owed = Journal::look(&kept, &identity(slots), &ring).expect("the journal fits its ring");
    for (request, _) in &owed.requests {
        assert_eq!(*request, Guest::request(request.id), "kept as it was taken");
    }
    let ids = owed.requests.iter().map(|(request, _)| request.id).collect();
    let journal = Journal::resume(kept, &identity(slots), &owed);
    (process(ring, journal, owed), ids)
}

fn process(ring: Ring, journal: Journal<Kept>, owed: blkback::journal::Owed) -> Process {
    let peer = DomId::new(5).unwrap();
    let (requests, slots) = XenRing::resume(ring, peer, owed.taken, owed.published).unwrap();
    Journaled::new(requests, journal, owed.requests, slots)
}

/// Runs a process until there is nothing to do or it is killed.
fn run(shared: &Rc<Shared>, mut process: Process, guest: &mut Guest, will: &mut Will<'_>) {
    let mut has: Vec<Taken> = Vec::new();
    let (mut unpublished, mut last) = (false, None);
    // Once for each request and publication, and once for nothing.
    for _ in 0..1000 {
        if shared.is_dead() {
            break;
        }
        // In the order in which the guest made them, whoever took them first.
        let mut take = |has: &mut Vec<Taken>| {
            let Some(raw) = process.take().unwrap() else { return false };
            let id = raw.asked.id;
            assert!(last.is_none_or(|last| last < id), "{id} after {last:?}");
            assert!(!guest.answered.contains(&id), "request {id} is begun after its answer");
            assert_eq!(raw.asked, Guest::request(id));
            last = Some(id);
            has.push((id, raw.slot));
            true
        };
        let answer = |process: &mut Process, (id, slot): Taken| {
            process.answer(slot, answer_of(id));
        };
        match will {
            Will::Chosen(choices) => {
                // Taking where there is nothing is no choice, but is not known before.
                let options = 1 + has.len() + usize::from(unpublished);
                match choices.choose(options) {
                    0 => {
                        if !take(&mut has) {
                            // Nothing else is left than what comes of doing the other things.
                            match (has.is_empty(), unpublished) {
                                (true, false) => break,
                                (true, true) => {
                                    let _ = process.publish();
                                    unpublished = false;
                                    guest.look();
                                }
                                _ => {
                                    answer(&mut process, has.remove(0));
                                    unpublished = true;
                                }
                            }
                        }
                    }
                    n if n <= has.len() => {
                        answer(&mut process, has.remove(n - 1));
                        unpublished = true;
                    }
                    _ => {
                        let _ = process.publish();
                        unpublished = false;
                        if !shared.is_dead() {
                            guest.look();
                        }
                    }
                }
            }
            Will::Greedy { newest } => {
                while take(&mut has) {}
                if has.is_empty() && !unpublished {
                    break;
                }
                if !has.is_empty() {
                    let which = if *newest { has.len() - 1 } else { 0 };
                    answer(&mut process, has.remove(which));
                }
                let _ = process.publish();
                unpublished = false;
                if !shared.is_dead() {
                    guest.look();
                }
            }
        }
    }
    for (_, slot) in has {
        process.abandon(slot);
    }
}

/// How many runs, processes and kills there were.
#[derive(Debug, Default)]
struct Counted {
    schedules: usize,
    kills: usize,
    second_kills: usize,
    owed: usize,
}

/// Everything that `requests` requests on `slots` slots can come to; a second kill in one of `every`
/// schedules.
fn exhaust(slots: u32, requests: u64, start: u32, every: usize) -> Counted {
    let mut counted = Counted::default();
    let mut choices = Choices::default();
    loop {
        // Alive, for the number of its stores.
        let shared = Shared::new(slots);
        let mut guest = Guest::new(&shared, requests, start);
        shared.live(None);
        let process = begin(&shared, slots);
        let begun = shared.made();
        run(&shared, process, &mut guest, &mut Will::Chosen(&mut choices));
        assert_eq!(
            guest.answered.len() as u64,
            requests,
            "nothing was killed, and all is answered"
        );
        let stores = shared.made();
        let (chosen, taken) = (choices.made.clone(), choices.at);
        counted.schedules += 1;
        for kill in begun..stores {
            let mut kills = vec![None];
            let mut second = 0;
            while let Some(again) = kills.pop() {
                let replay = Choices { made: chosen[..taken].to_vec(), at: 0 };
                let made = killed(slots, requests, start, kill, again, replay, &mut counted);
                counted.kills += usize::from(again.is_none());
                counted.second_kills += usize::from(again.is_some());
                if again.is_none() && counted.schedules % every == 0 {
                    second = made;
                }
                if second > 0 {
                    second -= 1;
                    kills.push(Some(second));
                }
            }
        }
        if !choices.next() {
            return counted;
        }
    }
}

/// One such run with its kills, at the end of which all is answered, once. Says how many stores the second
/// process made.
fn killed(
    slots: u32,
    requests: u64,
    start: u32,
    kill: usize,
    again: Option<usize>,
    mut replay: Choices,
    counted: &mut Counted,
) -> usize {
    let shared = Shared::new(slots);
    let mut guest = Guest::new(&shared, requests, start);
    shared.live(Some(kill));
    let process = begin(&shared, slots);
    run(&shared, process, &mut guest, &mut Will::Chosen(&mut replay));
    assert!(shared.is_dead());
    guest.look();

    let mut made = 0;
    let lives: &[Option<usize>] = if again.is_some() { &[again, None] } else { &[None] };
    for (n, life) in lives.iter().enumerate() {
        // The second process may be killed while it comes back, too.
        shared.live(*life);
        let (process, owed) = come_back(&shared, slots);
        counted.owed += owed.len();
        for id in owed {
            assert!(!guest.answered.contains(&id), "{id} was answered and is owed");
        }
        run(
            &shared,
            process,
            &mut guest,
            &mut Will::Greedy { newest: (kill + n).is_multiple_of(2) },
        );
        guest.look();
        made = shared.made();
    }
    assert_eq!(guest.answered.len() as u64, requests, "killed after {kill} stores, then {again:?}");
    made
}

#[test]
fn no_answer_is_lost_or_given_twice_wherever_it_is_killed() {
    // Two slots and more requests than that: one may lie there while the others go round.
    let counted = exhaust(2, 4, 0, 50);
    println!("two slots, four requests: {counted:?}");
    assert!(counted.schedules > 100 && counted.owed > counted.schedules, "{counted:?}");
    let counted = exhaust(2, 3, u32::MAX - 1, 1);
    println!("two slots, three requests, and the ring's indexes wrap: {counted:?}");
    let counted = exhaust(4, 3, 0, 20);
    println!("four slots, three requests: {counted:?}");
}
