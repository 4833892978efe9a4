//! Takes what the engine is done with, and begins the next step where there is one.
//!
//! Before: the engine. After: `release`. Trust: the engine is ours, but a transfer that it calls
//! done and that moved another number of bytes than asked is an error here all the same: half a
//! sector must never look like a sector.

use hypervisor::memory::Memory;

use crate::acquire::InFlight;
use crate::durability::{Standing, Step};
use crate::engine::{Engine, Finished as Moved};
use crate::request::Finished;
use crate::submit::Submit;

/// Takes one finished operation. Gives the request back if that was its last step.
#[inline]
pub fn complete<S, H, P, E>(
    moved: Moved<InFlight<H, P>>,
    submit: &mut Submit<S, H, P>,
    engine: &mut E,
    standing: &Standing,
) -> Option<Finished<S, H, P>>
where
    H: Memory,
    E: Engine<InFlight<H, P>>,
{
    let Moved { held: InFlight { ticket, body }, result } = moved;
    let pending = submit.table.get_mut(&ticket)?;
    let result = match (pending.step, pending.job.action) {
        (Step::Flush, _) => standing.after_flush(result).map(|_| ()),
        (Step::Transfer, action) if action.names_ranges() => result.map(|_| ()),
        (Step::Transfer, _) => match result {
            Ok(bytes) if bytes != pending.job.len => Err(libc::EIO),
            other => other.map(|_| ()),
        },
    };
    if result.is_ok() && pending.step == Step::Transfer {
        // One after the other: as many at once as the ring has slots are enough for the medium.
        pending.parts = pending.parts.saturating_add(1);
        if let Some(next) = body.ranges.get(pending.parts) {
            pending.part = *next;
            let operation = pending.operation();
            submit.go_on(engine, operation, ticket, body);
            return None;
        }
    }
    if result.is_ok()
        && let Some(step) = pending.plan.next()
    {
        pending.step = step;
        let operation = pending.operation();
        submit.go_on(engine, operation, ticket, body);
        return None;
    }
    let job = submit.table.leave(ticket)?.job;
    Some(Finished { job, body, result })
}
