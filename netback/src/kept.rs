//! Grants that stay mapped for as long as the frontend wants: what lies in their pages is copied without
//! asking the hypervisor.
//!
//! A frontend names them on the control ring, for each queue ("Static Grants"), and then sends from and
//! posts such pages like any others. Whoever copies looks here first.
//!
//! Before: `control`. After: `tx::copy_in`, `rx::copy_out`. Trust: the list is the frontend's; what it
//! names is mapped as any grant is, bounded in number, and the offsets of what lies in it are checked with
//! each copy. Source: "Static Grants", "Control messages" in io/netif.h (RELEASE-4.17).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hypervisor::memory::{Access, Memory, Using};
use hypervisor::{DomId, GrantRef};
use ring::wire::netif::control::{Gref, Status};

/// Grants that a queue keeps at most: two rings' worth of pages, and as much again.
pub const MOST: usize = 1024;

/// A page that stays mapped.
struct Page {
    memory: Box<dyn Memory + Send + Sync>,
    access: Access,
}

type Pages = BTreeMap<u32, Page>;

/// A queue's grants that stay mapped.
#[derive(Default)]
pub struct Kept {
    pages: RwLock<Pages>,
    /// How many, to be looked at without the lock.
    many: AtomicUsize,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("many", &self.len()).finish_non_exhaustive()
    }
}

impl Kept {
    fn change(&self) -> RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.many.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Maps what `peer` granted as `list`, all or none.
    pub fn add<U: Using>(&self, domain: &U, peer: DomId, list: &[Gref]) -> Status {
        let mut pages = self.change();
        if pages.len().saturating_add(list.len()) > MOST {
            return Status::INVALID_PARAMETER;
        }
        let mut new = Pages::new();
        for Gref { gref, flags, .. } in list {
            let read_only = flags & Gref::READ_ONLY != 0;
            let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
            let unknown = flags & !Gref::READ_ONLY != 0;
            if unknown || pages.contains_key(&gref.0) || new.contains_key(&gref.0) {
                return Status::INVALID_PARAMETER;
            }
            // One by one, for one by one they are given up.
            let Ok(mapping) = domain.map(peer, &[*gref], access) else {
                return Status::INVALID_PARAMETER;
            };
            new.insert(gref.0, Page { memory: Box::new(mapping), access });
        }
        pages.append(&mut new);
        self.many.store(pages.len(), Ordering::Relaxed);
        Status::SUCCESS
    }

    /// Gives up what `list` names, and says in it of each whether there was such a one. Says how many
    /// there were.
    pub fn remove(&self, list: &mut [Gref]) -> u32 {
        let mut pages = self.change();
        let mut removed = 0_u32;
        for entry in list {
            let status = match pages.remove(&entry.gref.0) {
                Some(_) => {
                    removed = removed.saturating_add(1);
                    Status::SUCCESS
                }
                None => Status::INVALID_PARAMETER,
            };
            entry.status = status.0 as u16;
        }
        self.many.store(pages.len(), Ordering::Relaxed);
        removed
    }

    /// Them, where there are any, to copy a batch: none is given up meanwhile.
    #[inline]
    #[must_use]
    pub fn look(&self) -> Option<Look<'_>> {
        if self.is_empty() {
            return None;
        }
        Some(Look(self.pages.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Grants that stay mapped for now.
pub struct Look<'a>(RwLockReadGuard<'a, Pages>);

impl Look<'_> {
    /// Copies bytes at `offset` out of a page. Says whether that was done; `None` where the page is
    /// not among these.
    #[inline]
    #[must_use]
    pub fn read(&self, gref: GrantRef, offset: u16, into: &mut [u8]) -> Option<bool> {
        let page = self.0.get(&gref.0)?;
        Some(page.memory.read_at(offset.into(), into).is_ok())
    }

    /// Copies bytes into a page, at `offset`; as [`read`](Self::read).
    #[inline]
    #[must_use]
    pub fn write(&self, gref: GrantRef, offset: u16, from: &[u8]) -> Option<bool> {
        let page = self.0.get(&gref.0)?;
        let may = page.access == Access::ReadWrite;
        Some(may && page.memory.write_at(offset.into(), from).is_ok())
    }
}
