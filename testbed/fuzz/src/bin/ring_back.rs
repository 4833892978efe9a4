//! A backend's end of a ring whose pages the peer rewrites at will, between any two steps.
#![no_main]

use domkit_fuzz::memory::Pages;
use hypervisor::memory::Memory as _;
use ring::wire::blkif::{Blkif, Request, Response, Status, X86_64};
use ring::{Back, ResponseSlot};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((order, mut rest)) = bytes.split_first() else { return };
    let pages = Pages::new(1 << (order & 3));
    let Ok(mut back) = Back::<Blkif<X86_64>, _>::attach(pages.clone()) else {
        panic!("a zeroed ring is in order")
    };
    let mut held: Vec<(Request, ResponseSlot)> = Vec::new();
    while let [what, tail @ ..] = rest {
        rest = tail;
        match what & 3 {
            0 => {
                let [a, b, len, tail @ ..] = rest else { break };
                let (piece, after) =
                    tail.split_at_checked(usize::from(*len)).unwrap_or((tail, &[]));
                rest = after;
                let offset = usize::from(u16::from_le_bytes([*a, *b])) % pages.len();
                let len = piece.len().min(pages.len() - offset);
                pages.write_at(offset, &piece[..len]).unwrap();
            }
            1 => match back.take_request() {
                Ok(Some(taken)) => held.push(taken),
                Ok(None) => {}
                Err(_) => break,
            },
            2 => {
                if !held.is_empty() {
                    let (request, slot) = held.swap_remove(usize::from(what >> 2) % held.len());
                    back.respond(slot, &Response::to(&request, Status::OKAY));
                }
                let _ = back.publish();
            }
            _ => {
                if back.rearm().is_err() {
                    break;
                }
            }
        }
        assert_eq!(back.outstanding() as usize, held.len());
        assert!(back.outstanding() <= back.slots());
    }
    for (_, slot) in held {
        slot.abandon();
    }
});
