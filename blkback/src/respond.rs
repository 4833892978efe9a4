//! Answers requests and counts how they went.
//!
//! Before: `release`. After: `notify`. Source: `BLKIF_RSP_*` (io/blkif.h, RELEASE-4.17): a guest is told
//! that something failed, or that there is no such thing, and no more.

use ring::wire::blkif::Status;

use crate::receive::Requests;
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
    let status = match result {
        Ok(()) => {
            stats.done(job.action, job.len, now_ns.saturating_sub(job.taken_ns));
            Status::OKAY
        }
        Err(errno) => {
            stats.medium_errors.add(1);
            status_of(job.action, errno)
        }
    };
    let response = job.response(status);
    requests.answer(job.slot, &response);
}

/// Answers a request that was refused after its checks.
pub fn refused<R: Requests>(requests: &mut R, stats: &Stats, job: Job<R::Slot>, refusal: Refusal) {
    stats.refuse(refusal);
    let response = job.response(refusal.status());
    requests.answer(job.slot, &response);
}

/// Whether a copy that failed after the medium's part was the guest's doing.
pub fn copy_failed<S, H>(done: &Finished<S, H>) -> Option<Refusal> {
    done.body.failed.clone().map(Refusal::from)
}

/// "Not supported" is an answer that frontends act on by not asking again, so it is kept for what a
/// medium may honestly be unable to do.
fn status_of(action: Action, errno: i32) -> Status {
    match action {
        Action::Discard { .. } | Action::Flush | Action::Barrier if errno == libc::EOPNOTSUPP => {
            Status::NOT_SUPPORTED
        }
        _ => Status::ERROR,
    }
}
