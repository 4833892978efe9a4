//! Gives the guest its pages back: copies what was read to them, and unmaps them.
//!
//! Before: `complete`. After: `respond`. Everything of a request is given back before the guest can see
//! its answer, because from then on the pages are the guest's to reuse.

use crate::acquire::GuestMemory;
use crate::request::Finished;
use crate::segments::Body;
use crate::validate::Action;

/// Emptied bodies, to be filled again.
#[derive(Debug)]
pub struct Bodies<H, P> {
    #[expect(clippy::vec_box, reason = "a body stays where it is while its request moves on")]
    free: Vec<Box<Body<H, P>>>,
    most: usize,
}

impl<H, P> Bodies<H, P> {
    /// Keeps at most `most` of them.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { free: Vec::with_capacity(most), most }
    }

    /// An empty one.
    #[inline]
    pub fn take(&mut self) -> Box<Body<H, P>> {
        self.free.pop().unwrap_or_default()
    }

    /// Takes back one whose bytes are no longer reachable.
    #[inline]
    pub fn put(&mut self, mut body: Box<Body<H, P>>) {
        body.failed = None;
        body.ranges.clear();
        if self.free.len() < self.most {
            self.free.push(body);
        }
    }
}

/// Copies to the guest what was read for it, and gives up the holds of all of `finished`. A copy that
/// fails makes its request fail.
#[inline]
pub fn release<S, G: GuestMemory>(memory: &mut G, finished: &mut [Finished<S, G::Hold, G::Place>]) {
    let read = |done: &&mut Finished<S, G::Hold, G::Place>| {
        done.job.action == Action::Read && done.result.is_ok()
    };
    memory.copy_out(finished.iter_mut().filter(read).map(|done| &mut *done.body));
    for done in finished {
        memory.release(&mut done.body.reached);
        if done.body.failed.is_some() && done.result.is_ok() {
            done.result = Err(libc::EFAULT);
        }
    }
}
