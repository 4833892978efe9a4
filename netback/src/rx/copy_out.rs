//! Copies packets into the guest's pages, all that have pages in a round in one batch.
//!
//! Before: `fit`. After: `respond`. Each piece has a status of its own; one that was refused is said so
//! in its page's answer, whereupon the frontend drops the packet (advisories 361, 362).

use hypervisor::DomId;
use hypervisor::memory::{CopyOp, Direction, GrantStatus, Using};
use ring::wire::netif::fit::Copy;
use ring::wire::netif::rx::{Request, Response};

use super::fit::{Answer, Page};
use crate::buffer::Buffer;
use crate::kept::Kept;
use crate::stats::{Loss, Stats};

/// Copies packets, each with how many of `pages` are its own, to `peer`, which has its grants in `kept`
/// stay mapped.
#[inline]
pub fn copy_out<'a, U: Using>(
    domain: &U,
    peer: DomId,
    kept: Option<&Kept>,
    packets: impl Iterator<Item = (&'a mut Buffer, usize)>,
    pages: &mut [Page],
    stats: &Stats,
) {
    let kept = kept.and_then(Kept::look);
    let mut found = 0_u64;
    let mut ops = Vec::with_capacity(if kept.is_some() { 0 } else { pages.len() });
    let mut left = &mut *pages;
    for (buffer, count) in packets {
        let rest = std::mem::take(&mut left);
        let Some((own, after)) = rest.split_at_mut_checked(count) else { break };
        left = after;
        let mut rest = buffer.packet_mut();
        for page in own {
            let Answer::Data(copy, response) = &mut page.answer else { continue };
            let Some((local, after)) = rest.split_at_mut_checked(usize::from(copy.size)) else {
                break;
            };
            rest = after;
            let there = kept.as_ref().and_then(|kept| kept.write(copy.gref, copy.offset, local));
            if let Some(copied) = there {
                found = found.saturating_add(1);
                page.copied = true;
                if !copied {
                    fail(*copy, response, stats);
                }
                continue;
            }
            let status = GrantStatus::GENERAL_ERROR;
            let direction = Direction::ToPeer;
            ops.push(CopyOp { gref: copy.gref, offset: copy.offset, direction, local, status });
        }
    }
    drop(kept);
    stats.rx_kept.add(found);
    if ops.is_empty() {
        return;
    }
    let asked = domain.copy(peer, &mut ops);
    let mut statuses = ops.iter().map(|op| op.status);
    for page in pages.iter_mut().filter(|page| !page.copied) {
        let Answer::Data(copy, response) = &mut page.answer else { continue };
        let done = statuses.next().is_some_and(|status| status.is_okay());
        if asked.is_err() || !done {
            fail(*copy, response, stats);
        }
    }
}

/// Has the page's answer say that nothing was copied.
fn fail(copy: Copy, response: &mut Response, stats: &Stats) {
    stats.lose(Loss::RxGrant, 1);
    let request = Request { id: response.id, gref: copy.gref };
    *response = Response::failed(request, response.flags);
}
