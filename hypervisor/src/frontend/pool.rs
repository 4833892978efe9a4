//! A queue's own granted pages, through which private memory is bounced.
//!
//! Granted once, when the queue is connected, to one backend, and until the connection ends: a
//! backend with persistent grants maps each page once, and one without sees ordinary grants. The
//! pages are zeroed when they are born and from then on hold only what this backend was given or
//! gave, so there is nothing in them that it has not seen, and nothing to clear between requests
//! (advisory 403). The lowest free pages are taken first: few pages are in use at a time, which
//! keeps the backend's table of mappings small and a request's pages mostly side by side.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::memory::{Access, Granting, Memory};
use crate::{DomId, GrantRef, HostError, PAGE_SIZE};

/// A page of the pool, by its place in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Page(u32);

impl Page {
    /// The byte of the pool's memory at which it begins.
    #[inline]
    #[must_use]
    pub fn offset(self) -> usize {
        (self.0 as usize).saturating_mul(PAGE_SIZE)
    }
}

/// Granted pages, some of them in use.
pub struct Pool<M> {
    memory: M,
    grefs: Vec<GrantRef>,
    /// A bit for each page, set where it is free.
    free: Box<[u64]>,
    /// No word before this one has a bit set.
    lowest: usize,
    available: usize,
}

impl<M: Memory> Pool<M> {
    /// `pages` pages, granted to `peer`; fewer where the domain has not so many, but at least
    /// `least`.
    ///
    /// # Errors
    ///
    /// The domain has not even that many, or not so many grant table entries.
    pub fn new<G: Granting<Memory = M>>(
        granting: &G,
        peer: DomId,
        pages: usize,
        least: usize,
    ) -> Result<Self, HostError> {
        let mut pages = pages.max(least).max(1);
        loop {
            match Self::exactly(granting, peer, pages) {
                Ok(pool) => return Ok(pool),
                Err(_) if pages > least.max(1) => pages = (pages / 2).max(least).max(1),
                Err(error) => return Err(error),
            }
        }
    }

    fn exactly<G: Granting<Memory = M>>(
        granting: &G,
        peer: DomId,
        pages: usize,
    ) -> Result<Self, HostError> {
        let memory = granting.allocate(pages, peer)?;
        let mut grefs = alloc::vec![GrantRef(0); pages];
        granting.grant(&memory, 0, Access::ReadWrite, &mut grefs)?;
        let free = (0..pages.div_ceil(64))
            .map(|word| match pages.saturating_sub(word.saturating_mul(64)) {
                bits @ 0..64 => (1_u64 << bits).wrapping_sub(1),
                _ => u64::MAX,
            })
            .collect();
        Ok(Self { memory, grefs, free, lowest: 0, available: pages })
    }

    /// The memory that all its pages lie in.
    #[inline]
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// How many pages are free.
    #[must_use]
    pub fn available(&self) -> usize {
        self.available
    }

    /// Takes the lowest free page.
    pub fn take(&mut self) -> Option<Page> {
        let words = self.free.get_mut(self.lowest..)?;
        for (ahead, word) in words.iter_mut().enumerate() {
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= word.wrapping_sub(1);
                self.lowest = self.lowest.saturating_add(ahead);
                self.available = self.available.saturating_sub(1);
                let first = u32::try_from(self.lowest).ok()?.checked_mul(64)?;
                return first.checked_add(bit).map(Page);
            }
        }
        self.lowest = self.free.len();
        None
    }

    /// Gives a page back.
    pub fn give(&mut self, page: Page) {
        let word = (page.0 / 64) as usize;
        if let Some(bits) = self.free.get_mut(word) {
            let bit = 1 << (page.0 % 64);
            debug_assert_eq!(*bits & bit, 0, "a page is given back once");
            *bits |= bit;
            self.lowest = self.lowest.min(word);
            self.available = self.available.saturating_add(1);
        }
    }

    /// By which reference the backend knows a page.
    #[must_use]
    pub fn gref(&self, page: Page) -> GrantRef {
        self.grefs.get(page.0 as usize).copied().unwrap_or(GrantRef(0))
    }

    /// By which references the backend knows its pages, in their order.
    #[must_use]
    pub fn grefs(&self) -> &[GrantRef] {
        &self.grefs
    }

    /// Takes the pool apart, to be retired.
    #[must_use]
    pub fn into_parts(self) -> (M, Vec<GrantRef>) {
        (self.memory, self.grefs)
    }
}
