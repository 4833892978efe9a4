//! Answers the guest's pages in the order in which it posted them, which is how it tells them apart.
//!
//! The last stage, after `copy_out`. The buffers go back to the pool.

use hypervisor::memory::Memory;

use super::fit::{Answer, Page};
use super::post::Post;
use super::take::Waiting;
use crate::buffer::Pool;
use crate::stats::Stats;

/// Answers all pages that were taken.
#[inline]
pub fn respond<M: Memory>(pages: impl Iterator<Item = Page>, post: &mut Post<M>) {
    for page in pages {
        let answer = match page.answer {
            Answer::Data(_, response) => response.into(),
            Answer::Extra(slot) => slot,
        };
        post.answer(page.owed, &answer);
    }
}

/// Counts a packet that was given to the guest, and frees its buffer.
#[inline]
pub fn given(waiting: Waiting, pool: &mut Pool, stats: &Stats) {
    stats.rx_packets.add(1);
    stats.rx_bytes.add(waiting.buffer.len() as u64);
    stats.rx_gso.add(u64::from(waiting.gso));
    pool.put(waiting.buffer);
}
