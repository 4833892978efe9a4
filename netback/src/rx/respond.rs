//! Answers the guest's pages in the order in which it posted them, which is how it tells them apart.
//!
//! The last stage, after `copy_out`. The buffers go back to the pool.

use std::collections::VecDeque;

use hypervisor::memory::Memory;
use ring::Notify;
use ring::note::MOST_IDS;

use super::fit::{Answer, Page};
use super::post::Post;
use super::take::Waiting;
use crate::buffer::Pool;
use crate::stats::Stats;

/// Answers all pages that were taken, of packets that have so many each. An extra covers its page's id, which is
/// noted; where there are more of them than a note has room for, the packets before are published first.
#[inline]
pub fn respond<M: Memory>(
    counts: impl Iterator<Item = usize>,
    pages: &mut Vec<Page>,
    post: &mut Post<M>,
) -> Notify {
    let mut notify = Notify::No;
    let (mut run, mut extras, mut left) = (0_usize, 0_usize, pages.as_slice());
    let mut runs = VecDeque::new();
    for count in counts {
        let (own, after) = left.split_at_checked(count).unwrap_or((left, &[]));
        let more = own.iter().filter(|page| matches!(page.answer, Answer::Extra(_))).count();
        if extras.saturating_add(more) > MOST_IDS {
            runs.push_back(run);
            (run, extras) = (0, 0);
        }
        run = run.saturating_add(count);
        extras = extras.saturating_add(more);
        left = after;
    }
    let mut pages = pages.drain(..);
    // The last run has what is left, also of a packet that broke off.
    for run in runs.into_iter().chain([usize::MAX]) {
        let left = pages.as_slice();
        let own = left.get(..run).unwrap_or(left);
        post.note(own);
        for page in pages.by_ref().take(run) {
            let answer = match page.answer {
                Answer::Data(_, response) => response.into(),
                Answer::Extra(slot) => slot,
            };
            post.answer(page.owed, &answer);
        }
        if post.publish().is_needed() {
            notify = Notify::Needed;
        }
    }
    notify
}

/// Counts a packet that was given to the guest, and frees its buffer.
#[inline]
pub fn given<F>(waiting: Waiting<F>, pool: &mut Pool, stats: &Stats) {
    stats.rx_packets.add(1);
    stats.rx_bytes.add(waiting.buffer.len() as u64);
    stats.rx_gso.add(u64::from(waiting.gso));
    pool.put(waiting.buffer);
}
