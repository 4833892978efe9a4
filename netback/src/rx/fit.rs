//! Gives packets the pages that they lie in, in order, as long as whole packets have room.
//!
//! Before: `post`. After: `copy_out`.

use hypervisor::PeerFault;
use hypervisor::memory::Memory;
use ring::ResponseSlot;
use ring::wire::netif::fit::{Copy, Fit, Placed};
use ring::wire::netif::rx::{Response, Slot};

use super::post::Post;

/// One page that was taken, and what becomes of it.
#[derive(Debug)]
pub struct Page {
    /// The duty to answer it.
    pub owed: ResponseSlot,
    /// The guest's name for it.
    pub id: u16,
    /// What it is answered with.
    pub answer: Answer,
    /// Whether what it says is done.
    pub copied: bool,
}

/// What a page is answered with.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// With what was copied into it.
    Data(Copy, Response),
    /// With an extra, which lies over it.
    Extra(Slot),
}

/// Takes the pages of one packet, for which there is room, and appends them to `pages`. Says how many.
///
/// # Errors
///
/// The guest's index cannot be. Pages that were taken before that are in `pages`.
#[inline]
pub fn fit<M: Memory>(
    fit: &Fit,
    post: &mut Post<M>,
    pages: &mut Vec<Page>,
) -> Result<usize, PeerFault> {
    let slots = fit.slots();
    for n in 0..slots {
        let Some((request, owed)) = post.take()? else {
            // They were there, and pages that were looked at do not go away.
            return Ok(n);
        };
        let answer = match fit.place(n, request) {
            Placed::Data { copy, response } => Answer::Data(copy, response),
            Placed::Extra(slot) => Answer::Extra(slot),
        };
        pages.push(Page { owed, id: request.id, answer, copied: false });
    }
    Ok(slots)
}
