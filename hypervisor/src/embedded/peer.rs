//! Another domain's memory, as a domain that uses it sees it.
//!
//! The whole of it is mapped when the first grant is used and unmapped when the last mapping of it
//! is dropped. Between those, using a grant is a few atomic operations: count the use, mark the
//! entry (see [`super::grant_table`]), read it once, and decide.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, OnceLock};

use crate::memory::{Access, GrantStatus, Memory as _};
use crate::{DomId, GrantRef, HostError, PAGE_SIZE};

use super::broker::message::Request;
use super::grant_table::{ENTRIES, Marks, Table};
use super::map::Map;
use super::session::Session;

/// In a reference's count of uses: its mark is being set or taken away.
const CHANGING: u32 = u32::MAX;

/// One domain's memory, in another domain.
#[derive(Debug)]
pub(crate) struct Peer {
    session: Arc<Session>,
    /// Who this is.
    pub(crate) domain: DomId,
    /// Who we are.
    user: DomId,
    share: u64,
    bit: u32,
    pages: u32,
    file: OwnedFd,
    table: Table,
    marks: Marks,
    /// How often we use each reference; the mark is set while that is not zero.
    uses: Map,
    writable: Map,
    /// The same pages, where writing faults.
    readonly: OnceLock<Map>,
}

/// What the broker says of a domain's memory.
pub(crate) struct Shared {
    pub(crate) domain: DomId,
    pub(crate) share: u64,
    pub(crate) slot: u32,
    pub(crate) pages: u32,
    pub(crate) ram: OwnedFd,
    pub(crate) table: OwnedFd,
    pub(crate) marks: OwnedFd,
}

impl Peer {
    /// Maps what the broker handed to domain `user`.
    pub(crate) fn new(
        session: Arc<Session>,
        user: DomId,
        shared: Shared,
    ) -> Result<Self, HostError> {
        let len = (shared.pages as usize).saturating_mul(PAGE_SIZE);
        Ok(Self {
            session,
            domain: shared.domain,
            user,
            share: shared.share,
            bit: 1_u32.wrapping_shl(shared.slot),
            pages: shared.pages,
            table: Table::of(&shared.table, false)?,
            marks: Marks::of(&shared.marks)?,
            uses: Map::zeros((ENTRIES as usize).saturating_mul(4))?,
            writable: Map::of(&shared.ram, len, true)?,
            readonly: OnceLock::new(),
            file: shared.ram,
        })
    }

    /// Whether this still is the domain's memory.
    pub(crate) fn alive(&self) -> bool {
        self.table.alive()
    }

    /// Starts using a reference and says which frame it is; must be followed by
    /// [`release`](Self::release).
    pub(crate) fn acquire(&self, gref: GrantRef, access: Access) -> Result<u32, GrantStatus> {
        let uses = self.uses_of(gref)?;
        if !self.alive() {
            return Err(GrantStatus::BAD_DOMAIN);
        }
        self.count_up(uses, gref);
        let checked = match self.table.read(gref) {
            Some(entry) => entry.permits(self.user, access),
            None => Err(GrantStatus::BAD_GNTREF),
        };
        match checked {
            Ok(frame) if frame < self.pages => Ok(frame),
            refused => {
                self.release(gref);
                Err(refused.err().unwrap_or(GrantStatus::BAD_PAGE))
            }
        }
    }

    /// Ends one use of a reference.
    pub(crate) fn release(&self, gref: GrantRef) {
        let Ok(uses) = self.uses_of(gref) else { return };
        let mut seen = uses.load(Relaxed);
        loop {
            let next = match seen {
                CHANGING | 0 => {
                    std::thread::yield_now();
                    seen = uses.load(Relaxed);
                    continue;
                }
                1 => CHANGING,
                more => more.wrapping_sub(1),
            };
            match uses.compare_exchange_weak(seen, next, Acquire, Relaxed) {
                Ok(1) => break,
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        self.marks.clear(gref, self.bit);
        uses.store(0, Release);
    }

    fn count_up(&self, uses: &AtomicU32, gref: GrantRef) {
        let mut seen = uses.load(Relaxed);
        loop {
            let next = match seen {
                CHANGING => {
                    // Another thread of ours is between two instructions.
                    std::thread::yield_now();
                    seen = uses.load(Relaxed);
                    continue;
                }
                0 => CHANGING,
                more => more.wrapping_add(1),
            };
            match uses.compare_exchange_weak(seen, next, Acquire, Relaxed) {
                Ok(0) => break,
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        self.marks.set(gref, self.bit);
        uses.store(1, Release);
    }

    fn uses_of(&self, gref: GrantRef) -> Result<&AtomicU32, GrantStatus> {
        if gref.0 >= ENTRIES {
            return Err(GrantStatus::BAD_GNTREF);
        }
        self.uses.word(gref.0 as usize).ok_or(GrantStatus::BAD_GNTREF)
    }

    /// All of the memory, to be used as `access` says.
    pub(crate) fn view(&self, access: Access) -> Result<&Map, HostError> {
        if access == Access::ReadWrite {
            return Ok(&self.writable);
        }
        if let Some(map) = self.readonly.get() {
            return Ok(map);
        }
        let map = Map::of(&self.file, self.writable.len(), false)?;
        Ok(self.readonly.get_or_init(|| map))
    }

    /// Frames side by side that are not neighbours in the domain's memory.
    pub(crate) fn gather(&self, frames: &[u32], access: Access) -> Result<Map, HostError> {
        Map::gather(&self.file, frames.iter().copied(), access == Access::ReadWrite)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // If the broker is gone, so is what it knew of us.
        let _ = self.session.ask(&Request::Release { share: self.share });
    }
}
