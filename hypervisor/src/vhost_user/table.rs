//! The machine's memory: regions that the monitor lends, by the machine's addresses.

use std::sync::Arc;

use super::message::Announced;
use super::{Log, Region};
use crate::memory::{Memory as _, Outside, Ram};

/// Bytes that follow each other in one region.
#[derive(Clone, Debug)]
pub struct Span {
    /// The region.
    pub region: Arc<Region>,
    /// Where they begin in it.
    pub offset: usize,
    /// How many.
    pub len: usize,
}

/// The regions at one time. Changes make another table; whoever uses this one goes on with it until it is
/// told.
#[derive(Clone, Debug, Default)]
pub struct Table {
    regions: Vec<Arc<Region>>,
    pub(super) log: Option<Arc<Log>>,
}

impl Table {
    /// The regions, in the order in which [`find`](Self::find) counts them.
    #[must_use]
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// The number of the region that has the machine's address `at`, where in it that is, and how many of its
    /// bytes follow, up to `len`.
    #[inline]
    #[must_use]
    pub fn find(&self, at: u64, len: u64) -> Option<(usize, usize, u64)> {
        let mut all = self.regions.iter().enumerate();
        let (number, (offset, left)) = all.find_map(|(n, region)| Some((n, region.guest(at)?)))?;
        Some((number, offset, left.min(len)))
    }

    /// `len` bytes at the monitor's address `at`.
    pub(super) fn user(&self, at: u64, len: usize) -> Option<Span> {
        self.regions.iter().find_map(|region| {
            let (offset, left) = region.user(at)?;
            let fits = left >= len as u64;
            fits.then(|| Span { region: Arc::clone(region), offset, len })
        })
    }

    /// Notes that `len` bytes at the machine's address `at` were written, while somebody wants to know.
    #[inline]
    pub fn wrote(&self, at: u64, len: u64) {
        if let Some(log) = &self.log {
            log.wrote(at, len);
        }
    }

    pub(super) fn add(&mut self, region: Region) {
        self.regions.push(Arc::new(region));
    }

    /// Whether that very region is there.
    pub(super) fn has(&self, announced: Announced) -> bool {
        self.regions.iter().any(|region| region.announced == announced)
    }

    /// Whether the region would lie over another one.
    pub(super) fn overlaps(&self, guest: u64, len: u64) -> bool {
        let end = guest.saturating_add(len);
        self.regions.iter().any(|region| {
            let there = region.announced;
            guest < there.guest.saturating_add(there.len) && there.guest < end
        })
    }

    /// Takes the region at these addresses away.
    pub(super) fn remove(&mut self, guest: u64, user: u64, len: u64) -> bool {
        let before = self.regions.len();
        self.regions.retain(|region| {
            let there = region.announced;
            (there.guest, there.user, there.len) != (guest, user, len)
        });
        self.regions.len() < before
    }

    /// Calls `each` for what lies at `at`, region by region.
    #[inline]
    fn walk(
        &self,
        at: u64,
        len: usize,
        mut each: impl FnMut(&Region, usize, usize, usize) -> bool,
    ) -> Result<(), Outside> {
        let outside = Outside { at, len: len as u64 };
        let mut done = 0_usize;
        while done < len {
            let from = at.checked_add(done as u64).ok_or(outside)?;
            let left = len.saturating_sub(done) as u64;
            let (number, offset, now) = self.find(from, left).ok_or(outside)?;
            let region = self.regions.get(number).ok_or(outside)?;
            let now = usize::try_from(now).unwrap_or(0);
            if !each(region, offset, done, now) {
                return Err(outside);
            }
            done = done.saturating_add(now);
        }
        Ok(())
    }
}

impl Ram for Table {
    #[inline]
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), Outside> {
        self.walk(at, into.len(), |region, offset, done, now| {
            let part = into.get_mut(done..done.saturating_add(now));
            part.is_some_and(|part| region.read_at(offset, part).is_ok())
        })
    }

    #[inline]
    fn write(&self, at: u64, from: &[u8]) -> Result<(), Outside> {
        self.walk(at, from.len(), |region, offset, done, now| {
            let part = from.get(done..done.saturating_add(now));
            part.is_some_and(|part| region.write_at(offset, part).is_ok())
        })?;
        self.wrote(at, from.len() as u64);
        Ok(())
    }
}
