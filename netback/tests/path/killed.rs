//! A backend that is killed between writing answers and publishing them, at every such moment, and the one that
//! comes after it: every request is answered once, in order, and nothing that lies over a request is taken for one.

use hypervisor::GrantRef;
use netback::buffer::Pool;
use netback::rx::fit::{Answer, Page};
use netback::rx::post::Post;
use netback::stats::Loss;
use netback::tx::admit::Needs;
use netback::tx::assemble::Assemble;
use netback::tx::receive::Receive;
use netback::tx::{Fate, Staged};
use ring::note::MOST_IDS;
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::extra::{Extra, Gso, Kind};
use ring::wire::netif::fit::Copy;
use ring::wire::netif::gather::Piece;
use ring::wire::netif::split::Split;
use ring::wire::netif::{Rx, Status, Tx, rx, tx};

use super::scene::Scene;

const GSO: Gso = Gso { size: 1448, protocol: 1, features: 0 };

/// Chains of several kinds; by slot, whether it is a request, and which.
fn chains(first: u16) -> (Vec<tx::Slot>, Vec<Option<u16>>) {
    let (mut slots, mut ids) = (Vec::new(), Vec::new());
    let mut id = first;
    for (pieces, gso) in [(1, false), (3, true), (1, true), (2, false)] {
        let own: Vec<u16> = (0..pieces).map(|n| id + n).collect();
        id += pieces;
        let piece = |n: &u16| Piece { gref: GrantRef(100 + u32::from(*n)), offset: 0, size: 1000 };
        let all: Vec<Piece> = own.iter().map(piece).collect();
        let gso = gso.then_some(GSO);
        let offload = Offload { checksum: Checksum::Blank, gso, hash: None };
        slots.extend(Split::new(&all, &own, offload).unwrap().slots());
        ids.push(Some(own[0]));
        ids.extend(gso.map(|_| None));
        ids.extend(own[1..].iter().map(|id| Some(*id)));
    }
    (slots, ids)
}

/// Takes all chains that there are.
fn all(receive: &mut Receive<impl hypervisor::memory::Memory>) -> Vec<Staged> {
    let (mut pool, credit, groups, stats) =
        (Pool::new(99), Default::default(), Default::default(), Default::default());
    let (mut assemble, mut staged) = (Assemble::default(), Vec::new());
    let (credit, groups, stats) = (&credit, &groups, &stats);
    loop {
        let mut needs = Needs { pool: &mut pool, room: 99, credit, groups, stats, now: 1 };
        match assemble.next(receive, &mut needs).unwrap() {
            Some(one) => staged.push(one),
            None => return staged,
        }
    }
}

#[test]
fn what_was_sent_and_not_seen_to_be_answered_is_answered_once_and_not_sent_again() {
    let scene = Scene::new();
    let (slots, ids) = chains(1);
    for killed in 0..=slots.len() {
        // Around the place where indexes begin anew, and after a round that came to its end.
        let (mut front, gref) = scene.ring::<Tx>(u32::MAX - 12);
        for (round, dies) in [(0, false), (1, true), (2, false)] {
            let (slots, ids) =
                if round == 0 { (slots.clone(), ids.clone()) } else { chains(100 * round) };
            for slot in &slots {
                front.push(slot).unwrap();
            }
            let _ = front.publish();
            let mut receive = Receive::attach(scene.map(gref), scene.guest.id()).unwrap();
            if dies {
                let answers: Vec<_> = all(&mut receive)
                    .iter()
                    .flat_map(|one| one.chain.answers(Status::OKAY).collect::<Vec<_>>())
                    .collect();
                receive.note(slots.len());
                answers.iter().take(killed).for_each(|answer| receive.answer(answer));
                // The next one finds it like that.
                drop(receive);
                receive = Receive::attach(scene.map(gref), scene.guest.id()).unwrap();
            }
            let staged = all(&mut receive);
            assert_eq!(staged.len(), 4);
            let fate = if dies { Fate::Lost(Loss::Interrupted) } else { Fate::Done };
            receive.note(slots.len());
            for one in &staged {
                assert_eq!((one.fate, one.buffer.is_none()), (fate, dies), "killed after {killed}");
                one.chain.answers(Status::ERROR).for_each(|answer| receive.answer(&answer));
            }
            let _ = receive.publish();
            for id in ids {
                let answer = front.take_response().unwrap().unwrap();
                match id {
                    Some(id) => assert_eq!((answer.id, answer.status), (id, Status::ERROR)),
                    None => assert_eq!(answer.status, Status::NULL),
                }
            }
            assert_eq!(front.take_response(), Ok(None));
        }
    }
}

#[test]
fn pages_that_may_hold_answers_are_given_back_by_the_names_that_they_have() {
    let scene = Scene::new();
    const MANY: usize = 20;
    // Which of them are covered by extras.
    let extra = |n: usize| n % 2 == 1 && n / 2 < MOST_IDS;
    for killed in 0..=MANY {
        let (mut front, gref) = scene.ring::<Rx>(u32::MAX - 30);
        for round in 0..3 {
            let id = |n: usize| 0x4000 * round + 7 * n as u16 + 3;
            for n in 0..2 * MANY {
                let request = rx::Request { id: id(n), gref: GrantRef(500 + n as u32) };
                front.push(&request).unwrap();
            }
            let _ = front.publish();
            let mut post = Post::attach(scene.map(gref), scene.guest.id()).unwrap();
            assert_eq!(post.give_up_spoilt(), Ok(0));
            let pages: Vec<Page> = (0..MANY)
                .map(|n| {
                    let (request, owed) = post.take().unwrap().unwrap();
                    let response = rx::Response {
                        id: request.id,
                        offset: 0,
                        flags: rx::Flags::NONE,
                        status: 60,
                    };
                    let copy = Copy { from: 0, gref: request.gref, offset: 0, size: 60 };
                    let answer = match extra(n) {
                        true => Answer::Extra(Extra { kind: Kind::Gso(GSO), more: false }.into()),
                        false => Answer::Data(copy, response),
                    };
                    Page { owed, id: request.id, answer, copied: true }
                })
                .collect();
            post.note(&pages);
            for (n, page) in pages.into_iter().enumerate() {
                match page.answer {
                    _ if n >= killed => page.owed.abandon(),
                    Answer::Data(_, response) => post.answer(page.owed, &response.into()),
                    Answer::Extra(slot) => post.answer(page.owed, &slot),
                }
            }
            drop(post);
            let mut post = Post::attach(scene.map(gref), scene.guest.id()).unwrap();
            assert_eq!(post.give_up_spoilt(), Ok(MANY as u32));
            for n in 0..MANY {
                let answer = front.take_response().unwrap().unwrap().response();
                assert_eq!(
                    (answer.id, answer.status),
                    (id(n), Status::ERROR.0),
                    "killed after {killed}, page {n}"
                );
            }
            // Those behind are as they were.
            for n in MANY..2 * MANY {
                let (request, owed) = post.take().unwrap().unwrap();
                assert_eq!((request.id, request.gref), (id(n), GrantRef(500 + n as u32)));
                post.answer(owed, &rx::Response::failed(request, rx::Flags::NONE).into());
            }
            let _ = post.publish();
            while front.take_response().unwrap().is_some() {}
        }
    }
}
