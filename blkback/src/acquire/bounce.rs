//! Our own memory that guest pages are copied from and to.
//!
//! Buffers are kept for reuse by size, in powers of two pages. What is handed out at one time is
//! bounded: a request that finds the pool empty waits until another is done. Units: pages.

use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory;

use crate::acquire::hold::Bounce;

/// Sizes from one page to 256 (a whole indirect request).
const CLASSES: usize = 9;

/// Buffers to copy through.
#[derive(Debug)]
pub struct Pool {
    free: [Vec<Bounce>; CLASSES],
    /// Pages that are handed out.
    out: usize,
    /// Pages that are kept for reuse.
    kept: usize,
    limit: usize,
}

impl Pool {
    /// A pool that hands out at most `limit` pages, but always enough for one whole request.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let largest = 1usize << (CLASSES - 1);
        Self { free: Default::default(), out: 0, kept: 0, limit: limit.max(largest) }
    }

    /// A buffer of at least `bytes` bytes; `None` where that has to wait for another to come back.
    pub fn take(&mut self, bytes: usize) -> Option<Bounce> {
        let pages = bytes.div_ceil(PAGE_SIZE).max(1).checked_next_power_of_two()?;
        let after = self.out.checked_add(pages).filter(|&after| after <= self.limit)?;
        let free = self.free.get_mut(usize::try_from(pages.trailing_zeros()).ok()?)?;
        let buffer = match free.pop() {
            Some(buffer) => {
                self.kept = self.kept.saturating_sub(pages);
                buffer
            }
            None => Bounce::new(pages)?,
        };
        self.out = after;
        Some(buffer)
    }

    /// Takes a buffer back.
    pub fn put(&mut self, buffer: Bounce) {
        let pages = buffer.len() / PAGE_SIZE;
        self.out = self.out.saturating_sub(pages);
        if self.out.saturating_add(self.kept).saturating_add(pages) > self.limit {
            return;
        }
        let class = usize::try_from(pages.trailing_zeros()).unwrap_or(usize::MAX);
        if let Some(free) = self.free.get_mut(class) {
            free.push(buffer);
            self.kept = self.kept.saturating_add(pages);
        }
    }

    /// Whether nothing is kept for reuse.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.kept == 0
    }

    /// Frees what is kept for reuse.
    pub fn free_unused(&mut self) {
        self.free = Default::default();
        self.kept = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_no_more_than_its_limit_and_always_one_whole_request() {
        let mut pool = Pool::new(0);
        let whole = pool.take(256 * PAGE_SIZE).unwrap();
        assert_eq!(whole.len(), 256 * PAGE_SIZE);
        assert!(pool.take(1).is_none());
        pool.put(whole);
        assert!(pool.take(257 * PAGE_SIZE).is_none());
        let small = pool.take(3 * PAGE_SIZE).unwrap();
        assert_eq!(small.len(), 4 * PAGE_SIZE);
        pool.put(small);
    }

    #[test]
    fn reuses_what_comes_back_and_keeps_no_more_than_its_limit() {
        let mut pool = Pool::new(512);
        let buffer = pool.take(PAGE_SIZE).unwrap();
        let address = buffer.base();
        pool.put(buffer);
        let again = pool.take(PAGE_SIZE).unwrap();
        assert_eq!(again.base(), address);
        pool.put(again);
        let two: Vec<_> = (0..2).map(|_| pool.take(256 * PAGE_SIZE).unwrap()).collect();
        two.into_iter().for_each(|buffer| pool.put(buffer));
        assert!(pool.kept <= 512);
        pool.free_unused();
        assert_eq!((pool.kept, pool.out), (0, 0));
    }
}
