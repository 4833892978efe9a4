//! When a request counts as done, and what may pass what.
//!
//! The contract:
//!
//! * A **write** is answered when the medium has taken it: whoever reads afterwards, on any queue, gets
//!   it. Nothing is said about power.
//! * A **flush** is answered when everything whose answer was sent before the flush was taken
//!   off its ring, on whichever queue, is on stable storage. It holds nothing up.
//! * A flush that **carries data** is a flush and then a write, as the stock frontends mean it.
//! * A **barrier** waits until all that came before it on its queue is done, then flushes, writes what
//!   it carries, and flushes that; nothing that came after it on its queue begins before, save
//!   flushes without data. Between queues the protocol has no order that could be kept.
//! * A **discard** is answered when the medium has taken it, and so are zeroes; for the order of barriers both
//!   are writes.
//! * A flush that **failed** leaves it open which writes are lost, and an operating system tells each
//!   open file once and then forgets. So it is remembered for the whole device: from the moment at
//!   which one is known to have failed no flush on any queue is answered with success, until the
//!   device is opened anew ([`Standing`]).
//!
//! Before: `acquire`. After: `respond`. Source: `BLKIF_OP_WRITE_BARRIER`, `BLKIF_OP_FLUSH_DISKCACHE`
//! (io/blkif.h, RELEASE-4.17).

use std::sync::atomic::{AtomicI32, Ordering};

use crate::validate::Action;

/// What the medium has yet to do for a request. The steps follow one another; the first that fails
/// ends the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    flush_before: bool,
    transfer: bool,
    flush_after: bool,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put on stable storage what was written before.
    Flush,
    /// Read, write or discard.
    Transfer,
}

impl Plan {
    /// The steps of `action`, to be taken off one after the other.
    #[must_use]
    #[inline]
    pub const fn of(action: Action, carries_data: bool) -> Self {
        match action {
            Action::Read | Action::Write | Action::Discard { .. } | Action::Zero { .. } => {
                Self { flush_before: false, transfer: true, flush_after: false }
            }
            Action::Flush => {
                Self { flush_before: true, transfer: carries_data, flush_after: false }
            }
            Action::Barrier => {
                Self { flush_before: true, transfer: carries_data, flush_after: carries_data }
            }
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    #[inline]
    fn next(&mut self) -> Option<Step> {
        if self.flush_before {
            self.flush_before = false;
            Some(Step::Flush)
        } else if self.transfer {
            self.transfer = false;
            Some(Step::Transfer)
        } else if self.flush_after {
            self.flush_after = false;
            Some(Step::Flush)
        } else {
            None
        }
    }
}

/// Keeps the order on one queue that barriers ask for. Flushes that carry no data neither wait here
/// nor are waited for: they cover what was answered before they came, and nothing else.
#[derive(Debug, Default)]
pub struct Order {
    /// Requests that change the medium and are under way.
    changing: usize,
    /// A barrier waits for them, or is under way itself.
    barrier: bool,
}

impl Order {
    /// Whether `action` may begin now. What may not is to be asked about again after the next
    /// request is over, before anything that came after it.
    #[inline]
    pub fn admit(&mut self, action: Action, carries_data: bool) -> bool {
        if free(action, carries_data) {
            return true;
        }
        if self.barrier {
            return false;
        }
        match action {
            Action::Barrier if self.changing > 0 => false,
            Action::Barrier => {
                self.barrier = true;
                true
            }
            _ => {
                if action != Action::Read {
                    self.changing = self.changing.saturating_add(1);
                }
                true
            }
        }
    }

    /// An action that was let begin is over.
    #[inline]
    pub fn over(&mut self, action: Action, carries_data: bool) {
        if free(action, carries_data) || action == Action::Read {
        } else if action == Action::Barrier {
            self.barrier = false;
        } else {
            self.changing = self.changing.saturating_sub(1);
        }
    }
}

/// Whether a request stands outside all order.
#[inline]
#[must_use]
pub const fn free(action: Action, carries_data: bool) -> bool {
    matches!(action, Action::Flush) && !carries_data
}

/// Whether what was written to a device can still be vouched for. One for each time that its medium
/// is opened, shared by its queues and kept while frontends come and go. Engines report each flush as
/// the kernel does; what follows from a failure is decided here and nowhere else.
#[derive(Debug, Default)]
pub struct Standing {
    /// The first failed flush's error number; 0 while there is none.
    lost: AtomicI32,
}

impl Standing {
    /// The outcome of a flush that ended with `result` on one queue, in the light of all the others.
    ///
    /// # Errors
    ///
    /// It, or one before it on any queue, has failed: the positive `errno` of the first.
    pub fn after_flush(&self, result: Result<u64, i32>) -> Result<u64, i32> {
        if let Err(errno) = result {
            // The attempt was given up before the medium was asked, so they say nothing about it.
            if matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) {
                return result;
            }
            let errno = if errno == 0 { libc::EIO } else { errno };
            let _ = self.lost.compare_exchange(0, errno, Ordering::SeqCst, Ordering::SeqCst);
        }
        match self.lost.load(Ordering::SeqCst) {
            0 => result,
            errno => Err(errno),
        }
    }

    /// One has failed with `errno`, in a process before this one.
    pub fn lose(&self, errno: i32) {
        let _ = self.lost.compare_exchange(0, errno, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The positive `errno` of the first flush that failed.
    #[must_use]
    pub fn lost(&self) -> Option<i32> {
        Some(self.lost.load(Ordering::SeqCst)).filter(|&errno| errno != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(action: Action, carries_data: bool) -> Vec<Step> {
        Plan::of(action, carries_data).collect()
    }

    #[test]
    fn each_action_has_its_steps() {
        use Step::{Flush, Transfer};
        assert_eq!(steps(Action::Read, true), [Transfer]);
        assert_eq!(steps(Action::Write, true), [Transfer]);
        assert_eq!(steps(Action::Discard { secure: false }, false), [Transfer]);
        assert_eq!(steps(Action::Zero { unmap: true }, false), [Transfer]);
        assert_eq!(steps(Action::Flush, false), [Flush]);
        assert_eq!(steps(Action::Flush, true), [Flush, Transfer]);
        assert_eq!(steps(Action::Barrier, false), [Flush]);
        assert_eq!(steps(Action::Barrier, true), [Flush, Transfer, Flush]);
    }

    #[test]
    fn a_barrier_waits_for_writes_and_holds_all_that_follows() {
        let mut order = Order::default();
        assert!(order.admit(Action::Write, true));
        assert!(order.admit(Action::Read, true));
        assert!(!order.admit(Action::Barrier, true));
        order.over(Action::Write, true);
        assert!(order.admit(Action::Barrier, true), "reads need not be over");
        for action in [Action::Read, Action::Write, Action::Flush, Action::Barrier] {
            assert!(!order.admit(action, true));
        }
        assert!(order.admit(Action::Flush, false), "a plain flush is outside all order");
        order.over(Action::Flush, false);
        order.over(Action::Read, true);
        assert!(!order.admit(Action::Write, true));
        order.over(Action::Barrier, true);
        assert!(order.admit(Action::Write, true));
    }

    #[test]
    fn a_failed_flush_is_everybodys_and_stays() {
        let standing = Standing::default();
        assert_eq!(standing.after_flush(Ok(0)), Ok(0));
        assert_eq!(standing.after_flush(Err(libc::EINTR)), Err(libc::EINTR));
        assert_eq!(standing.after_flush(Ok(0)), Ok(0));
        assert_eq!(standing.after_flush(Err(libc::ENOSPC)), Err(libc::ENOSPC));
        assert_eq!(standing.after_flush(Ok(0)), Err(libc::ENOSPC));
        assert_eq!(standing.after_flush(Err(libc::EIO)), Err(libc::ENOSPC));
        assert_eq!(standing.lost(), Some(libc::ENOSPC));
    }
}
