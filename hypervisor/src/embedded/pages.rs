//! A domain's own memory: pages to allocate and to offer.
//!
//! All of a domain's RAM is one memory file, mapped whole. [`Pages`] are runs of it. A page that is
//! dropped while a grant of it stands is set aside and freed when the last such grant is revoked:
//! reusing it earlier would show a peer what it was never offered (advisory 396).
#![expect(unsafe_code, reason = "Pages promise that their part of the RAM stays mapped")]

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::AcqRel;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::memory::Memory;
use crate::{DomId, GrantRef, HostError, PAGE_SIZE};

use super::arena::Arena;
use super::grant_table::{ENTRIES, Marks, RESERVED, Table};
use super::map::Map;

/// In a page's count of grants: its owner has dropped it.
const ASIDE: u32 = 1 << 31;

/// The memory of one domain and its grant table, in the domain itself.
#[derive(Debug)]
pub(crate) struct OwnMemory {
    pub(crate) domain: DomId,
    pub(crate) table: Table,
    pub(crate) marks: Marks,
    ram: Map,
    free: Mutex<Free>,
    /// One word a page: how many grants of it stand, and [`ASIDE`].
    standing: Map,
    /// References that are free, and the frame behind each that is not.
    pub(crate) references: Mutex<References>,
}

#[derive(Debug)]
struct Free {
    arena: Arena,
    /// Pages from here on were never handed out and still hold the zeros they were born with.
    untouched: u32,
}

#[derive(Debug)]
pub(crate) struct References {
    /// References that were used and are free again.
    pub(crate) returned: Vec<GrantRef>,
    /// The lowest that was never used.
    pub(crate) fresh: u32,
    /// The page behind each reference that is in use, by reference.
    pub(crate) frames: Vec<Option<u32>>,
}

impl OwnMemory {
    /// Maps what the broker handed to domain `domain`; `pages` of RAM.
    pub(crate) fn new(
        domain: DomId,
        pages: u32,
        ram: &OwnedFd,
        table: &OwnedFd,
        marks: &OwnedFd,
    ) -> Result<Self, HostError> {
        let pages_len = pages as usize;
        Ok(Self {
            domain,
            table: Table::of(table, true)?,
            marks: Marks::of(marks)?,
            ram: Map::of(ram, pages_len.saturating_mul(PAGE_SIZE), true)?,
            free: Mutex::new(Free { arena: Arena::new(pages), untouched: 0 }),
            standing: Map::zeros(pages_len.saturating_mul(4))?,
            references: Mutex::new(References {
                returned: Vec::new(),
                fresh: RESERVED,
                frames: Vec::new(),
            }),
        })
    }

    /// `count` contiguous zeroed pages.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        count: usize,
        peer: DomId,
    ) -> Result<Pages, HostError> {
        let refused = |free: &Free, errno: Errno| {
            let (used, target) = (free.arena.used(), self.table.target());
            let doing = format!(
                "allocate {count} pages in domain {} ({used} of {target} pages are in use)",
                self.domain
            );
            HostError::new(doing, errno as i32)
        };
        let (first, pages, dirty) = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let pages = match u32::try_from(count) {
                Ok(0) => return Err(refused(&free, Errno::EINVAL)),
                Ok(pages) => pages,
                Err(_) => return Err(refused(&free, Errno::ENOMEM)),
            };
            // The target may have been lowered since these pages were made; what is in use stays.
            if free.arena.used().saturating_add(pages) > self.table.target() {
                return Err(refused(&free, Errno::ENOMEM));
            }
            let Some(first) = free.arena.take(pages) else {
                return Err(refused(&free, Errno::ENOMEM));
            };
            let dirty = free.untouched.saturating_sub(first).min(pages);
            free.untouched = free.untouched.max(first.saturating_add(pages));
            (first, pages, dirty)
        };
        let made = Pages { of: Arc::clone(self), first, pages, peer };
        made.fill(0, (dirty as usize).saturating_mul(PAGE_SIZE), 0)
            .map_err(|_| HostError::new("zero pages", Errno::EFAULT as i32))?;
        Ok(made)
    }

    /// One more grant of page `frame` stands.
    pub(crate) fn granted(&self, frame: u32) {
        if let Some(word) = self.standing.word(frame as usize) {
            word.fetch_add(1, AcqRel);
        }
    }

    /// One fewer.
    pub(crate) fn revoked(&self, frame: u32) {
        if let Some(word) = self.standing.word(frame as usize)
            && word.fetch_sub(1, AcqRel) == ASIDE | 1
        {
            word.fetch_and(!ASIDE, AcqRel);
            self.give(frame, 1);
        }
    }

    /// Frees pages that were dropped; those that are still granted are set aside.
    fn dropped(&self, first: u32, pages: u32) {
        let mut start = first;
        let mut length = 0_u32;
        for frame in first..first.saturating_add(pages) {
            if self.set_aside_if_granted(frame) {
                self.give(start, length);
                (start, length) = (frame.saturating_add(1), 0);
            } else {
                length = length.saturating_add(1);
            }
        }
        self.give(start, length);
    }

    fn set_aside_if_granted(&self, frame: u32) -> bool {
        let Some(word) = self.standing.word(frame as usize) else { return true };
        // Nobody can grant the page any more, so a count of zero is final.
        if word.fetch_or(ASIDE, AcqRel) == 0 {
            word.fetch_and(!ASIDE, AcqRel);
            return false;
        }
        true
    }

    fn give(&self, first: u32, pages: u32) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.arena.give(first, pages);
    }

    /// Pages that are allocated or set aside.
    pub(crate) fn used(&self) -> u32 {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).arena.used()
    }
}

impl References {
    /// `count` free references; `None` where there are not that many, and then none is taken.
    pub(crate) fn take(
        &mut self,
        frames: impl ExactSizeIterator<Item = u32>,
        into: &mut [GrantRef],
    ) -> Option<()> {
        let fresh_left = ENTRIES.saturating_sub(self.fresh) as usize;
        if into.len() > self.returned.len().saturating_add(fresh_left) {
            return None;
        }
        for (slot, frame) in into.iter_mut().zip(frames) {
            let gref = self.returned.pop().unwrap_or_else(|| {
                let gref = GrantRef(self.fresh);
                self.fresh = self.fresh.saturating_add(1);
                gref
            });
            let index = gref.0 as usize;
            if self.frames.len() <= index {
                self.frames.resize(index.saturating_add(1), None);
            }
            if let Some(known) = self.frames.get_mut(index) {
                *known = Some(frame);
            }
            *slot = gref;
        }
        Some(())
    }

    /// The page behind a reference that is in use.
    pub(crate) fn frame(&self, gref: GrantRef) -> Option<u32> {
        self.frames.get(gref.0 as usize).copied().flatten()
    }

    /// Frees one that is in use.
    pub(crate) fn give(&mut self, gref: GrantRef) {
        if let Some(known) = self.frames.get_mut(gref.0 as usize)
            && known.take().is_some()
        {
            self.returned.push(gref);
        }
    }
}

/// Contiguous pages of a domain's own memory that can be offered to one peer.
///
/// Zeroed when new, freed on drop. A page that is still granted then is set aside until the last
/// grant of it is revoked.
#[derive(Debug)]
pub struct Pages {
    of: Arc<OwnMemory>,
    first: u32,
    pages: u32,
    peer: DomId,
}

impl Pages {
    /// The peer that they can be offered to.
    #[must_use]
    pub fn peer(&self) -> DomId {
        self.peer
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pages as usize
    }

    /// The frames from page `first` on; `None` where that is not `count` pages.
    pub(crate) fn frames(&self, first: usize, count: usize) -> Option<std::ops::Range<u32>> {
        let first = u32::try_from(first).ok()?;
        let end = first.checked_add(u32::try_from(count).ok()?)?;
        if end > self.pages {
            return None;
        }
        Some(self.first.checked_add(first)?..self.first.checked_add(end)?)
    }

    pub(crate) fn is_of(&self, memory: &Arc<OwnMemory>) -> bool {
        Arc::ptr_eq(&self.of, memory)
    }
}

// SAFETY: the pages lie inside the domain's RAM, which `of` keeps mapped read-write; `first` and
// `pages` never change, so both answers stay the same.
unsafe impl Memory for Pages {
    fn base(&self) -> *mut u8 {
        self.of.ram.base().wrapping_add((self.first as usize).wrapping_mul(PAGE_SIZE))
    }

    fn len(&self) -> usize {
        (self.pages as usize).wrapping_mul(PAGE_SIZE)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.of.dropped(self.first, self.pages);
    }
}
