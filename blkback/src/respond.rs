//! Answers requests and counts how they went.
//!
//! Before: `release`. After: `notify`. A guest is told that something failed, or that there is no such
//! thing, and no more.

use crate::receive::{Answer, Requests};
use crate::request::{Finished, Job};
use crate::stats::Stats;
use crate::validate::{Action, Refusal};

/// Answers a request that the medium is done with.
#[inline]
pub fn finished<R: Requests>(
    requests: &mut R,
    stats: &Stats,
    job: Job<R::Slot>,
    result: Result<(), i32>,
    now_ns: u64,
) {
    let answer = match result {
        Ok(()) => {
            stats.done(job.action, job.len, now_ns.saturating_sub(job.taken_ns));
            Answer::Done
        }
        Err(errno) => {
            stats.medium_errors.add(1);
            answer_of(job.action, errno)
        }
    };
    requests.answer(job.slot, answer);
}

/// Answers a request that was refused after its checks.
pub fn refused<R: Requests>(requests: &mut R, stats: &Stats, job: Job<R::Slot>, refusal: Refusal) {
    stats.refuse(refusal);
    requests.answer(job.slot, refusal.answer());
}

/// Whether a copy that failed after the medium's part was the guest's doing.
pub fn copy_failed<S, H, P>(done: &Finished<S, H, P>) -> Option<Refusal> {
    done.body.failed
}

/// "Not supported" is an answer that frontends act on by not asking again, so it is kept for what a
/// medium may honestly be unable to do.
fn answer_of(action: Action, errno: i32) -> Answer {
    match action {
        Action::Discard { .. } | Action::Zero { .. } | Action::Flush | Action::Barrier
            if errno == libc::EOPNOTSUPP =>
        {
            Answer::Unsupported
        }
        _ => Answer::Failed,
    }
}
