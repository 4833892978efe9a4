//! A queue's links come and go.
//!
//! A backend can vanish with requests on its ring: it was killed, or is replaced by another. What
//! was on the ring and not answered is kept as parts in the order in which they were first issued,
//! and goes out again, before anything new, when there is a link again. Doing a read, write, flush
//! or discard twice is the same as doing it once, as long as nothing that was answered in between
//! touched the same sectors; of an unanswered request's sectors nobody may assume anything, so
//! no caller has relied on that. The next backend's limits may differ: parts are cut to fit.

use hypervisor::event::Events;
use hypervisor::memory::Granting;

use crate::buffer::Buffer;
use crate::link::Link;
use crate::negotiate::DiskInfo;
use crate::queue::{Life, Queue};
use crate::request::IoError;

impl<H, B> Queue<H, B>
where
    H: Granting + Events,
    B: Buffer<Pages = H::Memory>,
{
    /// Goes on over `link`. What was interrupted is issued at once.
    pub fn attach(&mut self, link: Link<H>, info: DiskInfo) {
        debug_assert!(self.link.is_none(), "the former link was detached");
        self.info = Some(info);
        self.link = Some(link);
        self.issue();
        self.publish();
    }

    /// Stops using the link, if there is one, and gives it back to be retired. What was on its ring
    /// waits for the next one.
    pub fn detach(&mut self) -> Option<Link<H>> {
        let mut link = self.link.take()?;
        let before = self.again.len();
        link.shadow.drain(&mut self.again);
        let interrupted = self.again.len().saturating_sub(before) as u64;
        self.counters.interrupted = self.counters.interrupted.saturating_add(interrupted);
        Some(link)
    }

    /// The disk changed while connected: its size, as a rule.
    pub fn update(&mut self, info: DiskInfo) {
        self.info = Some(info);
    }

    /// Ends everything with `error`, and takes no requests any more. The link, if there is one, is
    /// given back to be retired.
    pub fn end(&mut self, error: IoError) -> Option<Link<H>> {
        let link = self.detach();
        self.again.clear();
        self.jobs.fail(error);
        if self.life == Life::Open {
            self.life = Life::Ended(error);
        }
        link
    }
}
