//! From responses on the ring to completions.
//!
//! Every response is taken from the ring once, by value, held against the shadow, and believed only
//! as far as it matches. Read data is copied out of the granted pages before the pages are used
//! again. After a lie nothing more is taken: the connection is over.

use alloc::format;

use hypervisor::event::{Channel, Events};
use hypervisor::memory::Granting;
use hypervisor::{PAGE_SIZE, PeerFault};
use ring::Recheck;
use ring::wire::blkif::{Status, operation};

use crate::buffer::Buffer;
use crate::link::Link;
use crate::queue::{Life, Queue};
use crate::request::IoError;
use crate::shadow::{Asked, Lie, Slot};

impl<H, B> Queue<H, B>
where
    H: Granting + Events,
    B: Buffer<Pages = H::Memory>,
{
    /// Takes every response that is there.
    pub(crate) fn reap(&mut self) -> Result<(), PeerFault> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if self.life != Life::Open {
            return Ok(());
        }
        let fault = loop {
            let response = match link.ring.take_response() {
                Ok(Some(response)) => response,
                Ok(None) => return Ok(()),
                Err(fault) => break fault.by(link.peer),
            };
            self.counters.answered = self.counters.answered.wrapping_add(1);
            let (slot, asked) = match link.shadow.answered(response.id, response.operation) {
                Ok(found) => found,
                Err(Lie::Id) => {
                    let value = format!("{:#x}", response.id);
                    break PeerFault::new(link.peer, "response to no request", value);
                }
                Err(Lie::Operation) => {
                    let what = "response to another operation";
                    break PeerFault::new(link.peer, what, response.operation);
                }
            };
            let result = match response.status {
                Status::OKAY => Ok(()),
                Status::ERROR => Err(IoError::Failed),
                Status::NOT_SUPPORTED => Err(IoError::Unsupported),
                status => break PeerFault::new(link.peer, "response with unknown status", status),
            };
            if asked.operation == operation::READ
                && result.is_ok()
                && let Some(job) = self.jobs.get_mut(asked.part.job)
            {
                link.unload(&slot, &asked, &mut job.request.buffer);
            }
            link.recycle(slot, &asked);
            self.jobs.part_done(asked.part.job, result);
        };
        self.fault = Some(fault.clone());
        self.again.clear();
        self.jobs.fail(IoError::Untrusted);
        self.life = Life::Ended(IoError::Untrusted);
        Err(fault)
    }

    /// Asks to be notified of the next response, and listens for it. Says whether there is
    /// something to do already, in which case nobody may sleep.
    pub fn arm(&mut self) -> bool {
        let Some(link) = &mut self.link else { return self.jobs.finished() > 0 };
        link.channel.take();
        link.channel.unmask();
        // A lie about the index is work, too: it is found when the responses are taken.
        let more = link.ring.rearm().map_or(true, Recheck::is_more);
        more || self.jobs.finished() > 0
    }
}

impl<H: Granting + Events> Link<H> {
    /// Copies what was read out of the pool's pages, runs of neighbours at once.
    fn unload<B>(&self, slot: &Slot, asked: &Asked, buffer: &mut B)
    where
        B: Buffer<Pages = H::Memory>,
    {
        let pages = self.shadow.pages(slot).get(..asked.data_pages).unwrap_or_default();
        let mut done = 0_usize;
        for run in pages.chunk_by(|a, b| a.offset().checked_add(PAGE_SIZE) == Some(b.offset())) {
            let Some(first) = run.first() else { continue };
            let room = run.len().saturating_mul(PAGE_SIZE);
            let len = room.min(asked.part.len.saturating_sub(done));
            let at = asked.part.at.saturating_add(done);
            buffer.load(at, self.pool.memory(), first.offset(), len);
            done = done.saturating_add(len);
        }
    }

    /// Frees an answered request's pages and its entry.
    fn recycle(&mut self, slot: Slot, asked: &Asked) {
        let count = asked.data_pages.saturating_add(asked.indirect_pages);
        for page in self.shadow.pages(&slot).iter().take(count) {
            self.pool.give(*page);
        }
        self.shadow.release(slot);
    }
}
