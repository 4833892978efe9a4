//! Pages that stay mapped between requests.
//!
//! A frontend with `feature-persistent` uses the same grants again and again (io/blkif.h,
//! RELEASE-4.17, note 7), so a page is mapped when first seen and found by its reference from
//! then on. The number of pages is bounded; beyond it the one that was not used for longest
//! goes, by the clock approximation: a hand passes over the pages and takes the first that nobody used
//! since it last came by.
//!
//! A page that is used again is made known to the engine, if that gains by it (io_uring's registered
//! buffers), and is forgotten there before it is unmapped.
//!
//! Trust: references are the peer's. Whatever it names, lookups stay cheap and the number of
//! pages stays bounded.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use hypervisor::GrantRef;
use hypervisor::memory::Memory;

/// How far the hand moves for one insertion at most.
const STEPS: usize = 64;

/// Pages that may wait for the engine to forget them. A guest that needs more at a time has its
/// pages mapped for each request.
const RETIRED: usize = 256;

/// Mapped pages by grant reference.
#[derive(Debug)]
pub struct Cache<M> {
    index: HashMap<u32, usize, BuildHasherDefault<Spread>>,
    /// A page keeps its place for as long as it is kept: the engine knows it by that number.
    places: Vec<Option<Kept<M>>>,
    free: Vec<usize>,
    hand: usize,
    limit: usize,
    /// Whether the engine gains by knowing pages, as far as it has said.
    registering: bool,
    /// Places whose pages the engine is to learn of.
    new: Vec<usize>,
    /// Places with the pages that were there, which the engine is to forget before they go.
    retired: Vec<(usize, Rc<M>)>,
}

#[derive(Debug)]
struct Kept<M> {
    gref: GrantRef,
    used: bool,
    known: Known,
    page: Rc<M>,
}

/// What the engine knows of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing: it was used once.
    No,
    /// It is to be told.
    Soon,
    /// Its place.
    Yes,
}

impl<M> Cache<M> {
    /// An empty cache for at most `limit` pages.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            index: HashMap::default(),
            places: Vec::new(),
            free: Vec::new(),
            hand: 0,
            limit,
            registering: true,
            new: Vec::new(),
            retired: Vec::new(),
        }
    }

    /// The page that is mapped for `gref`, and the number by which the engine knows it.
    #[inline]
    pub fn get(&mut self, gref: GrantRef) -> Option<(Rc<M>, Option<u16>)> {
        let at = *self.index.get(&gref.0)?;
        let kept = self.places.get_mut(at)?.as_mut()?;
        kept.used = true;
        let number = match kept.known {
            Known::Yes => u16::try_from(at).ok(),
            // Used again, so worth a system call.
            Known::No if self.registering => {
                kept.known = Known::Soon;
                self.new.push(at);
                None
            }
            _ => None,
        };
        Some((Rc::clone(&kept.page), number))
    }

    /// Keeps `page` for `gref`, which was not found; another may go for it. Gives the page back
    /// where no room can be had, since all others are in use.
    ///
    /// # Errors
    ///
    /// The page, which is not kept.
    pub fn insert(&mut self, gref: GrantRef, page: M) -> Result<Rc<M>, M> {
        if self.len() >= self.limit && !self.make_room() {
            return Err(page);
        }
        let page = Rc::new(page);
        let kept = Kept { gref, used: true, known: Known::No, page: Rc::clone(&page) };
        let at = self.free.pop().unwrap_or(self.places.len());
        match self.places.get_mut(at) {
            Some(place) => *place = Some(kept),
            None => self.places.push(Some(kept)),
        }
        self.index.insert(gref.0, at);
        Ok(page)
    }

    /// Unmaps whatever was not used since the last call and is not in use now.
    pub fn unmap_unused(&mut self) {
        for at in 0..self.places.len() {
            let Some(kept) = self.places.get_mut(at).and_then(Option::as_mut) else { continue };
            if kept.used || Rc::strong_count(&kept.page) > 1 {
                kept.used = false;
            } else {
                self.remove(at);
            }
        }
    }

    /// Pages that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether [`settle`](Self::settle) has something to do.
    #[inline]
    #[must_use]
    pub fn unsettled(&self) -> bool {
        !(self.new.is_empty() && self.retired.is_empty())
    }

    fn make_room(&mut self) -> bool {
        if self.retired.len() >= RETIRED {
            return false;
        }
        for _ in 0..STEPS {
            if self.hand >= self.places.len() {
                self.hand = 0;
            }
            let at = self.hand;
            self.hand = at.saturating_add(1);
            let Some(kept) = self.places.get_mut(at).and_then(Option::as_mut) else { continue };
            if !kept.used && Rc::strong_count(&kept.page) == 1 {
                self.remove(at);
                return true;
            }
            kept.used = false;
        }
        false
    }

    fn remove(&mut self, at: usize) {
        let Some(gone) = self.places.get_mut(at).and_then(Option::take) else { return };
        self.index.remove(&gone.gref.0);
        self.free.push(at);
        match gone.known {
            Known::No => {}
            Known::Soon => self.new.retain(|&place| place != at),
            Known::Yes => self.retired.push((at, gone.page)),
        }
    }
}

impl<M: Memory> Cache<M> {
    /// Tells the engine, by `register`, which pages went and which came to stay.
    pub fn settle(&mut self, mut register: impl FnMut(u16, *mut u8, usize) -> bool) {
        for (at, page) in self.retired.drain(..) {
            if let Ok(number) = u16::try_from(at) {
                register(number, std::ptr::null_mut(), 0);
            }
            drop(page);
        }
        for at in self.new.drain(..) {
            let Some(kept) = self.places.get_mut(at).and_then(Option::as_mut) else { continue };
            let page = &kept.page;
            // One that it does not want is the last that it is asked about.
            self.registering = self.registering
                && u16::try_from(at).is_ok_and(|at| register(at, page.base(), page.len()));
            kept.known = if self.registering { Known::Yes } else { Known::No };
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
    use crate::acquire::hold::Bounce;

    #[test]
    fn finds_what_it_keeps_and_stays_within_its_limit() {
        let mut cache = Cache::new(8);
        for number in 0..100u32 {
            let _ = cache.insert(GrantRef(number), number);
            assert!(cache.len() <= 8);
        }
        let found = (0..100).filter_map(|n| cache.get(GrantRef(n)).map(|(p, _)| (n, *p)));
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
        assert!(cache.get(GrantRef(2)).is_some_and(|(page, _)| *page == 2));
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

    #[test]
    fn the_engine_learns_of_pages_that_stay_and_forgets_them_before_they_go() {
        let page = || Bounce::new(1).unwrap();
        let mut cache = Cache::new(2);
        let mut told = Vec::new();
        let first = cache.insert(GrantRef(7), page()).unwrap().base();
        let _ = cache.insert(GrantRef(8), page());
        assert!(!cache.unsettled(), "used once");
        assert_eq!(cache.get(GrantRef(7)).unwrap().1, None);
        assert!(cache.unsettled());
        cache.settle(|at, base, len| {
            told.push((at, base, len));
            true
        });
        assert_eq!(told, [(0, first, 4096)]);
        assert_eq!(cache.get(GrantRef(7)).unwrap().1, Some(0));
        assert!(!cache.unsettled());
        // Two more push both out.
        let _ = cache.insert(GrantRef(9), page());
        let _ = cache.insert(GrantRef(10), page());
        assert!(cache.get(GrantRef(7)).is_none());
        told.clear();
        cache.settle(|at, base, len| {
            told.push((at, base, len));
            true
        });
        assert_eq!(told, [(0, std::ptr::null_mut(), 0)]);
        assert_eq!(cache.get(GrantRef(9)).unwrap().1, None);
    }

    #[test]
    fn an_engine_that_gains_nothing_is_asked_once() {
        let mut cache = Cache::new(4);
        let _ = cache.insert(GrantRef(1), Bounce::new(1).unwrap());
        let _ = cache.insert(GrantRef(2), Bounce::new(1).unwrap());
        let mut asked = 0;
        for gref in [1, 2, 1, 2] {
            assert_eq!(cache.get(GrantRef(gref)).unwrap().1, None);
            cache.settle(|_, _, _| {
                asked += 1;
                false
            });
        }
        assert_eq!(asked, 1);
    }
}
