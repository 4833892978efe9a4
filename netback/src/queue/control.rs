//! What a device tells its queues, what they share, and how a queue ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use hypervisor::{HostError, PeerFault};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring::Waiting;
use ring::packet::steering::Steering;

use super::Inbox;
use crate::credit::Limits;
use crate::filter::{Groups, Sources};
use crate::kept::Kept;
use crate::memo::Memo;
use crate::rx::Bounds;

/// What the queues of one connection have in common.
#[derive(Debug)]
#[non_exhaustive]
pub struct Serving {
    /// Whom the guest may send as.
    pub sources: Sources,
    /// Which multicast packets it wants.
    pub groups: Groups,
    /// The device's rates. May be changed at any time; wake the queues after it.
    pub limits: Limits,
    /// How much may wait for the guest in each queue, and for how long.
    pub rx: Bounds,
    /// How queues wait for work.
    pub waiting: Waiting,
    /// How long a queue keeps memory that an idle guest does not use.
    pub idle: Duration,
    /// One for each queue.
    inboxes: Vec<Inbox>,
    /// One for each queue.
    kept: Vec<Kept>,
    /// What outlives this process of what the frontend says.
    memo: OnceLock<Arc<Memo>>,
    queues: u16,
    steering: RwLock<Steering>,
    /// Whether there is anything in it.
    steered: AtomicBool,
    /// How many queues the guest posts nothing to.
    stalled: AtomicUsize,
    /// What the frontend last said of headroom; more than 16 bits hold while it said no more.
    headroom: AtomicU32,
}

impl Serving {
    /// For a device with `queues` queues, whose guest may send as `sources`, without limits.
    #[must_use]
    pub fn new(queues: u16, sources: Sources) -> Self {
        Self {
            sources,
            groups: Groups::default(),
            limits: Limits::default(),
            rx: Bounds::default(),
            waiting: Waiting::default(),
            idle: Duration::from_secs(10),
            inboxes: (0..queues).map(|_| Inbox::default()).collect(),
            kept: (0..queues).map(|_| Kept::default()).collect(),
            memo: OnceLock::new(),
            queues,
            steering: RwLock::new(Steering::new(queues)),
            steered: AtomicBool::new(false),
            stalled: AtomicUsize::new(0),
            headroom: AtomicU32::new(u32::MAX),
        }
    }

    /// What the frontend says is kept in `memo` from now on. Before anything is served.
    pub fn keep(&self, memo: Arc<Memo>) {
        self.groups.keep(&memo);
        // Once for each connection.
        let _ = self.memo.set(memo);
    }

    /// Where what the frontend says is kept, if it is.
    #[must_use]
    pub fn memo(&self) -> Option<&Memo> {
        self.memo.get().map(Arc::as_ref)
    }

    /// From now on leaves so many bytes free in front of packets, whatever was negotiated.
    pub fn set_headroom(&self, bytes: u16) {
        self.headroom.store(bytes.into(), Ordering::Relaxed);
    }

    /// How many that is, where it was changed.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> Option<u16> {
        u16::try_from(self.headroom.load(Ordering::Relaxed)).ok()
    }

    /// How many queues there are.
    #[must_use]
    pub const fn queues(&self) -> u16 {
        self.queues
    }

    /// What other queues have for queue `number`.
    #[must_use]
    pub fn inbox(&self, number: u16) -> Option<&Inbox> {
        self.inboxes.get(usize::from(number))
    }

    /// Which of the frontend's grants queue `number` keeps mapped.
    #[inline]
    #[must_use]
    pub fn kept(&self, number: u16) -> Option<&Kept> {
        self.kept.get(usize::from(number))
    }

    /// How the frontend wants packets hashed and spread, where it said.
    #[inline]
    pub fn steering(&self) -> Option<RwLockReadGuard<'_, Steering>> {
        if !self.steered.load(Ordering::Acquire) {
            return None;
        }
        Some(self.steering.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes that.
    pub fn steer<T>(&self, change: impl FnOnce(&mut Steering) -> T) -> T {
        let mut steering = self.steering.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut steering);
        self.steered.store(steering.is_set(), Ordering::Release);
        changed
    }

    /// Takes in that a queue stalled or goes on. Says whether the link is to be up, where that
    /// changes: it is down while any queue is stalled.
    pub(crate) fn stall(&self, stalled: bool) -> Option<bool> {
        if stalled {
            (self.stalled.fetch_add(1, Ordering::AcqRel) == 0).then_some(false)
        } else {
            (self.stalled.fetch_sub(1, Ordering::AcqRel) == 1).then_some(true)
        }
    }

    /// Whether the link is down because the guest posts nothing.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire) > 0
    }
}

/// The line from a device to one of its queues.
#[derive(Debug)]
pub struct Control {
    stop: AtomicBool,
    wake: EventFd,
}

impl Control {
    /// A line that says to serve.
    ///
    /// # Errors
    ///
    /// There are no descriptors left.
    pub fn new() -> Result<Arc<Self>, HostError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)
            .map_err(|errno| HostError::new("make a queue's event descriptor", errno as i32))?;
        Ok(Arc::new(Self { stop: AtomicBool::new(false), wake }))
    }

    /// Tells the queue to end. What was taken and has not gone on stays unanswered, for whoever
    /// serves the ring next.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Makes the queue look around: at rates that were changed, for one.
    pub fn wake(&self) {
        // Fails only where the counter is full, and then the descriptor is readable already.
        let _ = self.wake.write(1);
    }

    /// Whether the queue is to end.
    #[inline]
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Readable when there is something to look at.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes it unreadable again. Before looking, not after it.
    pub(crate) fn heard(&self) {
        while let Err(Errno::EINTR) = self.wake.read() {}
    }
}

/// How a queue's thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// The guest broke the rings' rules. Its device is to be ended.
    Fault(PeerFault),
    /// This machine failed us.
    Failed(HostError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_down_while_any_queue_is_stalled() {
        let serving = Serving::new(2, Sources::default());
        let said = [true, true, false, false].map(|stalled| serving.stall(stalled));
        assert_eq!(said, [Some(false), None, None, Some(true)]);
        assert!(!serving.is_stalled());
    }
}
