//! Grants that stay mapped for as long as the frontend wants: what lies in their pages is copied without
//! asking the hypervisor.
//!
//! A frontend names them on the control ring, for each queue ("Static Grants"), and then sends from and
//! posts such pages like any others. Whoever copies looks here first.
//!
//! Before: `control`. After: `tx::copy_in`, `rx::copy_out`. Trust: the list is the frontend's; what it
//! names is mapped as any grant is, bounded in number, and the offsets of what lies in it are checked with
//! each copy. Source: "Static Grants", "Control messages" in io/netif.h (RELEASE-4.17).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hypervisor::memory::{Access, MapFailed, Memory, Using};
use hypervisor::{DomId, GrantRef, PAGE_SIZE};
use ring::wire::netif::control::{Gref, Status};

/// Grants that a queue keeps at most: two rings' worth of pages, and as much again.
pub const MOST: usize = 1024;

/// Pages that are mapped side by side, at most: to give up one of them, the others are mapped anew.
const RUN: usize = 32;

/// A page that stays mapped, together with those that were named with it.
#[derive(Clone)]
struct Page {
    run: Arc<dyn Memory + Send + Sync>,
    /// Where it begins there.
    at: usize,
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

    /// Maps what `peer` granted as `list`, all or none, several side by side.
    pub fn add<U: Using>(&self, domain: &U, peer: DomId, list: &[Gref]) -> Status {
        let mut pages = self.change();
        if pages.len().saturating_add(list.len()) > MOST {
            return Status::INVALID_PARAMETER;
        }
        let mut names = BTreeSet::new();
        for Gref { gref, flags, .. } in list {
            let unknown = flags & !Gref::READ_ONLY != 0;
            if unknown || pages.contains_key(&gref.0) || !names.insert(gref.0) {
                return Status::INVALID_PARAMETER;
            }
        }
        let mut new = Pages::new();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let wanted = |entry: &&Gref| access_of(entry) == access;
            let grefs: Vec<GrantRef> = list.iter().filter(wanted).map(|entry| entry.gref).collect();
            for grefs in grefs.chunks(RUN) {
                match run(domain, peer, grefs, access) {
                    Ok(mut run) => new.append(&mut run),
                    Err(_) => return Status::INVALID_PARAMETER,
                }
            }
        }
        pages.append(&mut new);
        self.many.store(pages.len(), Ordering::Relaxed);
        Status::SUCCESS
    }

    /// Gives up what `list` names, and says in it of each whether there was such a one. Says how many
    /// there were. What was mapped together with one of them, and stays, is mapped anew, so that nothing
    /// is left of those; where that is refused, it does not stay.
    pub fn remove<U: Using>(&self, domain: &U, peer: DomId, list: &mut [Gref]) -> u32 {
        let mut pages = self.change();
        let (mut removed, mut runs) = (0_u32, Vec::<Page>::new());
        for entry in list {
            let status = match pages.remove(&entry.gref.0) {
                Some(page) => {
                    removed = removed.saturating_add(1);
                    if !runs.iter().any(|one| Arc::ptr_eq(&one.run, &page.run)) {
                        runs.push(page);
                    }
                    Status::SUCCESS
                }
                None => Status::INVALID_PARAMETER,
            };
            entry.status = status.0 as u16;
        }
        for one in runs {
            let with = pages.iter().filter(|(_, page)| Arc::ptr_eq(&page.run, &one.run));
            let stay: Vec<GrantRef> = with.map(|(gref, _)| GrantRef(*gref)).collect();
            for gref in &stay {
                pages.remove(&gref.0);
            }
            match run(domain, peer, &stay, one.access) {
                Ok(mut anew) => pages.append(&mut anew),
                Err(error) => {
                    tracing::warn!(pages = stay.len(), "grants stay no longer mapped: {error}")
                }
            }
        }
        self.many.store(pages.len(), Ordering::Relaxed);
        removed
    }

    /// All of them, as a frontend would name them.
    #[must_use]
    pub fn list(&self) -> Vec<Gref> {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let named = |(gref, page): (&u32, &Page)| {
            let flags = if page.access == Access::ReadOnly { Gref::READ_ONLY } else { 0 };
            Gref { gref: GrantRef(*gref), flags, status: 0 }
        };
        pages.iter().map(named).collect()
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

fn access_of(entry: &Gref) -> Access {
    if entry.flags & Gref::READ_ONLY != 0 { Access::ReadOnly } else { Access::ReadWrite }
}

/// Maps `grefs` side by side: one mapping costs as much as one page's.
fn run<U: Using>(
    domain: &U,
    peer: DomId,
    grefs: &[GrantRef],
    access: Access,
) -> Result<Pages, MapFailed> {
    if grefs.is_empty() {
        return Ok(Pages::new());
    }
    let run: Arc<dyn Memory + Send + Sync> = Arc::new(domain.map(peer, grefs, access)?);
    let page = |at| Page { run: Arc::clone(&run), at, access };
    let places = (0..).step_by(PAGE_SIZE);
    Ok(grefs.iter().zip(places).map(|(gref, at)| (gref.0, page(at))).collect())
}

/// Where `len` bytes at `offset` of a page lie in its run, if they lie in the page.
fn place(page: &Page, offset: u16, len: usize) -> Option<usize> {
    let offset = usize::from(offset);
    (offset.checked_add(len)? <= PAGE_SIZE).then_some(())?;
    page.at.checked_add(offset)
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
        let at = place(page, offset, into.len());
        Some(at.is_some_and(|at| page.run.read_at(at, into).is_ok()))
    }

    /// Copies bytes into a page, at `offset`; as [`read`](Self::read).
    #[inline]
    #[must_use]
    pub fn write(&self, gref: GrantRef, offset: u16, from: &[u8]) -> Option<bool> {
        let page = self.0.get(&gref.0)?;
        let may = page.access == Access::ReadWrite;
        let at = place(page, offset, from.len()).filter(|_| may);
        Some(at.is_some_and(|at| page.run.write_at(at, from).is_ok()))
    }
}
