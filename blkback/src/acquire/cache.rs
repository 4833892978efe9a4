//! Pages that stay mapped between requests.
//!
//! A frontend with `feature-persistent` uses the same grants again and again (io/blkif.h,
//! RELEASE-4.17, note 7), so a page is mapped when first seen and found by its reference from
//! then on. The number of pages is bounded; beyond it the one that was not used for longest
//! goes, by the clock approximation: a hand passes over the pages and takes the first that nobody used
//! since it last came by.
//!
//! Trust: references are the peer's. Whatever it names, lookups stay cheap and the number of
//! pages stays bounded.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use hypervisor::GrantRef;

/// How far the hand moves for one insertion at most.
const STEPS: usize = 64;

/// Mapped pages by grant reference.
#[derive(Debug)]
pub struct Cache<M> {
    index: HashMap<u32, usize, BuildHasherDefault<Spread>>,
    pages: Vec<Kept<M>>,
    hand: usize,
    limit: usize,
}

#[derive(Debug)]
struct Kept<M> {
    gref: GrantRef,
    used: bool,
    page: Rc<M>,
}

impl<M> Cache<M> {
    /// An empty cache for at most `limit` pages.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { index: HashMap::default(), pages: Vec::new(), hand: 0, limit }
    }

    /// The page that is mapped for `gref`.
    #[inline]
    pub fn get(&mut self, gref: GrantRef) -> Option<Rc<M>> {
        let at = *self.index.get(&gref.0)?;
        let kept = self.pages.get_mut(at)?;
        kept.used = true;
        Some(Rc::clone(&kept.page))
    }

    /// Keeps `page` for `gref`, which was not found; another may go for it. Gives the page back
    /// where no room can be had, since all others are in use.
    ///
    /// # Errors
    ///
    /// The page, which is not kept.
    pub fn insert(&mut self, gref: GrantRef, page: M) -> Result<Rc<M>, M> {
        if self.pages.len() >= self.limit && !self.make_room() {
            return Err(page);
        }
        let page = Rc::new(page);
        self.index.insert(gref.0, self.pages.len());
        self.pages.push(Kept { gref, used: true, page: Rc::clone(&page) });
        Ok(page)
    }

    /// Unmaps whatever was not used since the last call and is not in use now.
    pub fn unmap_unused(&mut self) {
        let mut at = 0;
        while let Some(kept) = self.pages.get_mut(at) {
            if kept.used || Rc::strong_count(&kept.page) > 1 {
                kept.used = false;
                at = at.saturating_add(1);
            } else {
                self.remove(at);
            }
        }
    }

    /// Pages that are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    fn make_room(&mut self) -> bool {
        for _ in 0..STEPS {
            if self.hand >= self.pages.len() {
                self.hand = 0;
            }
            let Some(kept) = self.pages.get_mut(self.hand) else { return false };
            if !kept.used && Rc::strong_count(&kept.page) == 1 {
                self.remove(self.hand);
                return true;
            }
            kept.used = false;
            self.hand = self.hand.saturating_add(1);
        }
        false
    }

    /// Takes the page at `at` out; the last one takes its place.
    fn remove(&mut self, at: usize) {
        let gone = self.pages.swap_remove(at);
        self.index.remove(&gone.gref.0);
        if let Some(moved) = self.pages.get(at) {
            self.index.insert(moved.gref.0, at);
        }
    }
}

/// A multiplicative hash of one number. A peer may choose references that collide; the bound on
/// the number of pages then bounds what a lookup costs.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let mixed = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_it_keeps_and_stays_within_its_limit() {
        let mut cache = Cache::new(8);
        for number in 0..100u32 {
            let _ = cache.insert(GrantRef(number), number);
            assert!(cache.len() <= 8);
        }
        let found = (0..100).filter_map(|n| cache.get(GrantRef(n)).map(|p| (n, *p)));
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 8);
        assert!(found.iter().all(|(asked, got)| asked == got));
    }

    #[test]
    fn a_page_in_use_is_never_given_up() {
        let mut cache = Cache::new(2);
        let first = cache.insert(GrantRef(1), 1).unwrap();
        let second = cache.insert(GrantRef(2), 2).unwrap();
        assert_eq!(cache.insert(GrantRef(3), 3), Err(3));
        drop(first);
        assert!(cache.insert(GrantRef(3), 3).is_ok());
        assert!(cache.get(GrantRef(1)).is_none());
        assert_eq!(cache.get(GrantRef(2)).as_deref(), Some(&2));
        drop(second);
    }

    #[test]
    fn pages_used_lately_outlive_those_that_were_not() {
        let mut cache = Cache::new(4);
        for number in 0..4u32 {
            let _ = cache.insert(GrantRef(number), number);
        }
        // The first insertion beyond the limit finds all marked, clears the marks and takes one.
        let _ = cache.insert(GrantRef(10), 10);
        let alive: Vec<u32> = (0..4).filter(|n| cache.get(GrantRef(*n)).is_some()).collect();
        assert_eq!(alive.len(), 3);
        cache.unmap_unused();
        // All were just looked up, except none: everything still stands, unmarked now.
        assert_eq!(cache.len(), 4);
        let _ = cache.get(GrantRef(10));
        cache.unmap_unused();
        assert_eq!(cache.len(), 1);
        assert!(cache.get(GrantRef(10)).is_some());
    }
}
