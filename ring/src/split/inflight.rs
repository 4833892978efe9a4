//! Which heads are with the device, noted in memory that outlives this process.
//!
//! A device gives heads back out of order, so once it is killed, its rings alone do not say which it had
//! taken. The region does, which the virtual machine's process keeps and hands to the next device process.
//!
//! ```text
//!   0   features 64        8   version 16 (1)        10  entries 16
//!   12  last head that was put on the used ring 16   14  used index 16
//!   16  entries * { in flight 8, padding 5 * 8, next 16, counter 64 }
//! ```
//!
//! Heads that are given back are linked from the last one on; those before the used index are dealt with. What a
//! process that was killed between showing the used index and clearing the notes left is found by these
//! links. Trust: the region is as the driver's rings are; numbers in it are checked. Source: QEMU,
//! docs/interop/vhost-user.rst, "Inflight I/O tracking", `QueueRegionSplit`.

use alloc::vec::Vec;

use super::{Area, Fault};
use crate::shared::{Halves, Words};

const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_AT: usize = 12;
const USED_AT: usize = 14;
const FRONT: usize = 16;
const ENTRY: usize = 16;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const VERSION: u16 = 1;

/// Bytes of the region of a queue of `size` entries, in the units in which queues follow each other.
#[must_use]
pub const fn inflight_bytes(size: u16) -> usize {
    (size as usize).saturating_mul(ENTRY).saturating_add(FRONT).next_multiple_of(64)
}

/// The notes of one queue.
#[derive(Debug)]
pub struct Inflight<M> {
    area: Area<M>,
    size: u16,
    counter: u64,
    used: u16,
}

impl<M: Words + Halves> Inflight<M> {
    /// Takes up the notes in `area` of a queue of `size` entries whose used index is `used`. Also gives the
    /// heads that are owed, in the order in which they were taken; `None` where the notes were new.
    ///
    /// # Errors
    ///
    /// The region is too small, or is another queue's.
    pub fn open(area: Area<M>, size: u16, used: u16) -> Result<(Self, Option<Vec<u16>>), Fault> {
        let short = |have| Fault::Short { part: "inflight region", have, size };
        if area.len() < inflight_bytes(size) {
            return Err(short(area.len()));
        }
        let mut notes = Self { area, size, counter: 0, used };
        if notes.area.load(VERSION_AT) == 0 {
            notes.area.store(ENTRIES_AT, size);
            notes.area.store(USED_AT, used);
            notes.area.store(VERSION_AT, VERSION);
            return Ok((notes, None));
        }
        let entries = notes.area.load(ENTRIES_AT);
        if entries < size {
            return Err(short(usize::from(entries)));
        }
        notes.finish(notes.area.load(USED_AT), used);
        let mut owed: Vec<(u64, u16)> = Vec::new();
        for head in 0..size {
            if notes.is_noted(head) {
                let mut counter = [0; 8];
                notes.area.copy_out(place(head).saturating_add(COUNTER_AT), &mut counter);
                owed.push((u64::from_le_bytes(counter), head));
            }
        }
        owed.sort_unstable();
        notes.counter = owed.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok((notes, Some(owed.into_iter().map(|(_, head)| head).collect())))
    }

    /// Notes that `head` was taken.
    ///
    /// # Errors
    ///
    /// It is noted already.
    #[inline]
    pub fn take(&mut self, head: u16) -> Result<(), Fault> {
        if self.is_noted(head) {
            return Err(Fault::HeadTwice { head });
        }
        let at = place(head);
        self.area.copy_in(at.saturating_add(COUNTER_AT), &self.counter.to_le_bytes());
        self.counter = self.counter.wrapping_add(1);
        self.area.fence();
        self.area.copy_in(at, &[1]);
        Ok(())
    }

    /// Notes that `head` is about to be given back. Before it is shown.
    #[inline]
    pub fn give_back(&mut self, head: u16) {
        let last = self.area.load(LAST_AT);
        self.area.store(place(head).saturating_add(NEXT_AT), last);
        self.area.store(LAST_AT, head);
    }

    /// The used index is `used` now: what was given back is over.
    #[inline]
    pub fn published(&mut self, used: u16) {
        self.finish(self.used, used);
    }

    /// Clears the notes of those that were given back between `from` and `to`.
    fn finish(&mut self, from: u16, to: u16) {
        self.area.fence();
        let mut head = self.area.load(LAST_AT);
        for _ in 0..to.wrapping_sub(from).min(self.size) {
            if head >= self.size {
                break;
            }
            self.area.copy_in(place(head), &[0]);
            head = self.area.load(place(head).saturating_add(NEXT_AT));
        }
        self.area.fence();
        self.area.store(USED_AT, to);
        self.used = to;
    }

    fn is_noted(&self, head: u16) -> bool {
        let mut noted = [0];
        self.area.copy_out(place(head), &mut noted);
        noted != [0]
    }
}

fn place(head: u16) -> usize {
    usize::from(head).saturating_mul(ENTRY).saturating_add(FRONT)
}
