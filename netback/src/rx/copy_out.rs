//! Copies packets into the guest's pages, all that have pages in a round in one batch.
//!
//! Before: `fit`. After: `respond`. Each piece has a status of its own; one that was refused is said so
//! in its page's answer, whereupon the frontend drops the packet (advisories 361, 362).

use hypervisor::DomId;
use hypervisor::memory::{CopyOp, Direction, GrantStatus, Using};
use ring::wire::netif::rx::{Request, Response};

use super::fit::{Answer, Page};
use super::take::Waiting;
use crate::stats::{Loss, Stats};

/// Copies packets, each with how many of `pages` are its own.
#[inline]
pub fn copy_out<'a, U: Using>(
    domain: &U,
    peer: DomId,
    packets: impl Iterator<Item = &'a mut (Waiting, usize)>,
    pages: &mut [Page],
    stats: &Stats,
) {
    let mut ops = Vec::with_capacity(pages.len());
    let mut left = &*pages;
    for (waiting, count) in packets {
        let Some((own, after)) = left.split_at_checked(*count) else { break };
        left = after;
        let mut rest = waiting.buffer.packet_mut();
        for page in own {
            let Answer::Data(copy, _) = page.answer else { continue };
            let Some((local, after)) = rest.split_at_mut_checked(usize::from(copy.size)) else {
                break;
            };
            rest = after;
            let status = GrantStatus::GENERAL_ERROR;
            let direction = Direction::ToPeer;
            ops.push(CopyOp { gref: copy.gref, offset: copy.offset, direction, local, status });
        }
    }
    if ops.is_empty() {
        return;
    }
    let asked = domain.copy(peer, &mut ops);
    let mut statuses = ops.iter().map(|op| op.status);
    for page in pages {
        let Answer::Data(copy, response) = &mut page.answer else { continue };
        let done = statuses.next().is_some_and(|status| status.is_okay());
        if asked.is_err() || !done {
            stats.lose(Loss::RxGrant, 1);
            let request = Request { id: response.id, gref: copy.gref };
            *response = Response::failed(request, response.flags);
        }
    }
}
