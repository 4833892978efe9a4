//! One queue of a disk: what its caller asked for, and the link to a backend that does it.
//!
//! The queue outlives links. It takes requests and gives completions; a [`Link`]
//! comes when the device is connected ([`attach`](Queue::attach)) and goes when the backend does
//! ([`detach`](Queue::detach)); what was on the ring then is issued again on the next one.
//!
//! ```text
//! caller -> submit -> jobs -> issue -> shadow, pool, ring -> publish -> (notify)
//! caller <- complete <- jobs <- reap <- shadow, pool, ring
//! ```
//!
//! Nothing here waits. A caller that polls calls [`service`](Queue::service) as often as it likes; one
//! that sleeps calls [`arm`](Queue::arm) first, sleeps only if that found nothing, and wakes by the
//! link's event channel. One caller at a time: sharing a queue is its owner's affair.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use hypervisor::PeerFault;
use hypervisor::event::Events;
use hypervisor::memory::Granting;

use crate::buffer::Buffer;
use crate::jobs::Jobs;
use crate::link::Link;
use crate::negotiate::DiskInfo;
use crate::request::{Completion, IoError};
use crate::shadow::Part;

/// What a queue has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Requests taken from callers.
    pub submitted: u64,
    /// Requests put on a ring, some of them again.
    pub issued: u64,
    /// Requests that were on a ring when its backend went away.
    pub interrupted: u64,
    /// Responses.
    pub answered: u64,
    /// Notifications sent to the backend.
    pub notified: u64,
}

impl Counters {
    /// Adds another queue's.
    pub fn add(&mut self, other: &Self) {
        self.submitted = self.submitted.saturating_add(other.submitted);
        self.issued = self.issued.saturating_add(other.issued);
        self.interrupted = self.interrupted.saturating_add(other.interrupted);
        self.answered = self.answered.saturating_add(other.answered);
        self.notified = self.notified.saturating_add(other.notified);
    }
}

/// Whether a queue goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// It takes requests.
    Open,
    /// It takes none any more, and ended what it had with this.
    Ended(IoError),
}

/// One queue. `B` is the memory that its requests own.
pub struct Queue<H: Granting + Events, B> {
    pub(crate) jobs: Jobs<B>,
    /// Parts that were on a ring whose backend went away, oldest first.
    pub(crate) again: VecDeque<Part>,
    pub(crate) link: Option<Link<H>>,
    pub(crate) info: Option<DiskInfo>,
    pub(crate) life: Life,
    pub(crate) fault: Option<PeerFault>,
    /// Given to the next part.
    pub(crate) order: u64,
    pub(crate) counters: Counters,
}

impl<H, B> Queue<H, B>
where
    H: Granting + Events,
    B: Buffer<Pages = H::Memory>,
{
    /// A queue that holds at most `depth` requests, without a link yet.
    #[must_use]
    pub fn new(depth: u32) -> Self {
        Self {
            jobs: Jobs::new(depth.max(1)),
            again: VecDeque::new(),
            link: None,
            info: None,
            life: Life::Open,
            fault: None,
            order: 0,
            counters: Counters::default(),
        }
    }

    /// What the disk is, once it has been connected.
    #[must_use]
    pub fn info(&self) -> Option<&DiskInfo> {
        self.info.as_ref()
    }

    /// Whether a backend is there at the moment.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// How many requests it holds: waiting, on the ring, or done and not taken.
    #[must_use]
    pub fn held(&self) -> usize {
        self.jobs.len()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The event channel by which the backend says that there are responses.
    #[must_use]
    pub fn channel(&self) -> Option<&Arc<H::Channel>> {
        self.link.as_ref().map(|link| &link.channel)
    }

    /// How the backend broke the protocol, if it did. The queue has then ended.
    #[must_use]
    pub fn fault(&self) -> Option<&PeerFault> {
        self.fault.as_ref()
    }

    /// Does what can be done now: takes responses, issues what waits, tells the backend. Says
    /// whether there is a completion to take.
    ///
    /// # Errors
    ///
    /// The backend broke the protocol: every request has ended with [`IoError::Untrusted`], and
    /// those completions still are to be taken.
    pub fn service(&mut self) -> Result<bool, PeerFault> {
        self.reap()?;
        self.issue();
        self.publish();
        Ok(self.jobs.finished() > 0)
    }

    /// A request that has ended, with its memory.
    pub fn complete(&mut self) -> Option<Completion<B>> {
        self.jobs.take()
    }
    /// The request named `tag`, if it has ended. Of several with that name, the first that did.
    pub fn complete_tag(&mut self, tag: u64) -> Option<Completion<B>> {
        self.jobs.take_tagged(tag)
    }
}
