//! A program that has nothing but core and alloc, as a custom guest kernel has: it starts itself,
//! brings its own allocator and panic handler, and sends a block request over a ring in its own
//! memory. Its exit status says how far it came: 0 is all the way.
#![no_std]
#![no_main]

extern crate alloc;
extern crate blkfront as _;
extern crate netfront as _;

mod memory;
mod runtime;

use ring::wire::blkif::{Blkif, Native, Request, Response, Segment, Segments, Status, Transfer};
use ring::{Back, Front, Notify, Recheck};

use hypervisor::GrantRef;
use memory::Page;

/// One request there, one response back; what failed, if anything did.
fn round_trip() -> Result<(), &'static str> {
    let page = Page::take().ok_or("no page")?;
    let other = page.clone();
    let mut front = Front::<Blkif<Native>, _>::init(page).map_err(|_| "front")?;
    let mut back = Back::<Blkif<Native>, _>::attach(other).map_err(|_| "back")?;
    let segment = Segment { gref: GrantRef(8), first: 0, last: 7 };
    let segments = Segments::new(&[segment]).map_err(|_| "segments")?;
    let request = Request::read(42, Transfer { sector: 2048, segments });
    front.push(&request).map_err(|_| "push")?;
    if back.rearm().map_err(|_| "rearm")? != Recheck::Quiet {
        return Err("a request before it was published");
    }
    if front.publish() != Notify::Needed {
        return Err("the backend sleeps and was not to be woken");
    }
    let (taken, slot) = back.take_request().map_err(|_| "take")?.ok_or("no request")?;
    back.respond(slot, &Response::to(&taken, Status::OKAY));
    if back.publish() != Notify::Needed {
        return Err("the frontend sleeps and was not to be woken");
    }
    let response = front.take_response().map_err(|_| "response")?.ok_or("no response")?;
    if response.id != 42 || !response.status.is_okay() {
        return Err("not the response");
    }
    // What a person would be told comes out of alloc alone.
    let text = alloc::format!("{}", hypervisor::PeerFault::new(hypervisor::DomId::ZERO, "test", 1));
    if text == "domain 0: test: 1" { Ok(()) } else { Err("not the text") }
}

fn run() -> i32 {
    match round_trip() {
        Ok(()) => 0,
        Err(what) => {
            runtime::say(what);
            1
        }
    }
}
