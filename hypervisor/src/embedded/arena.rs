//! Which of a domain's pages are free: contiguous runs, the smallest that fits first.
//!
//! Pure bookkeeping in page numbers; nothing here touches memory.

use std::collections::{BTreeMap, BTreeSet};

/// The free pages of one domain.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Length of each free run, by its first page. No two runs touch.
    runs: BTreeMap<u32, u32>,
    /// The same runs, shortest first.
    by_length: BTreeSet<(u32, u32)>,
    free: u32,
    total: u32,
}

impl Arena {
    /// Pages 0 to `pages`, all free.
    pub(crate) fn new(pages: u32) -> Self {
        let mut arena =
            Self { runs: BTreeMap::new(), by_length: BTreeSet::new(), free: 0, total: pages };
        if pages > 0 {
            arena.insert(0, pages);
            arena.free = pages;
        }
        arena
    }

    /// Pages that are not free.
    pub(crate) fn used(&self) -> u32 {
        self.total.saturating_sub(self.free)
    }

    /// The first of `pages` contiguous pages that were free and no longer are.
    pub(crate) fn take(&mut self, pages: u32) -> Option<u32> {
        if pages == 0 {
            return None;
        }
        let &(length, start) = self.by_length.range((pages, 0)..).next()?;
        self.remove(start, length);
        let rest = length.saturating_sub(pages);
        if rest > 0 {
            self.insert(start.saturating_add(pages), rest);
        }
        self.free = self.free.saturating_sub(pages);
        Some(start)
    }

    /// Frees `pages` pages from `start` on, all of which were taken.
    pub(crate) fn give(&mut self, start: u32, pages: u32) {
        if pages == 0 {
            return;
        }
        let (mut first, mut length) = (start, pages);
        if let Some((&before, &its)) = self.runs.range(..start).next_back()
            && before.saturating_add(its) == start
        {
            self.remove(before, its);
            (first, length) = (before, length.saturating_add(its));
        }
        let after = start.saturating_add(pages);
        if let Some(&its) = self.runs.get(&after) {
            self.remove(after, its);
            length = length.saturating_add(its);
        }
        self.insert(first, length);
        self.free = self.free.saturating_add(pages);
    }

    fn insert(&mut self, start: u32, length: u32) {
        self.runs.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.runs.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_run_that_fits_is_taken() {
        let mut arena = Arena::new(16);
        let first = arena.take(4).unwrap();
        let second = arena.take(2).unwrap();
        let third = arena.take(10).unwrap();
        assert_eq!((first, second, third, arena.used()), (0, 4, 6, 16));
        assert_eq!(arena.take(1), None);
        arena.give(first, 4);
        arena.give(third, 10);
        assert_eq!(arena.take(3), Some(0));
        assert_eq!(arena.take(1), Some(3));
        arena.give(second, 2);
        assert_eq!(arena.take(12), Some(4));
    }

    proptest! {
        // Against a plain array of flags: nothing is handed out twice, nothing is lost, runs merge.
        #[test]
        fn agrees_with_an_array(steps in prop::collection::vec((any::<bool>(), 1_u32..9, any::<prop::sample::Index>()), 1..200)) {
            const PAGES: u32 = 64;
            let mut arena = Arena::new(PAGES);
            let mut taken = [false; PAGES as usize];
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (take, pages, which) in steps {
                if take || held.is_empty() {
                    let longest = longest_free(&taken);
                    let Some(start) = arena.take(pages) else {
                        prop_assert!(longest < pages);
                        continue;
                    };
                    for page in start..start + pages {
                        prop_assert!(!std::mem::replace(&mut taken[page as usize], true));
                    }
                    held.push((start, pages));
                } else {
                    let (start, pages) = held.swap_remove(which.index(held.len()));
                    arena.give(start, pages);
                    taken[start as usize..(start + pages) as usize].fill(false);
                }
                prop_assert_eq!(arena.used() as usize, taken.iter().filter(|used| **used).count());
            }
            for (start, pages) in held {
                arena.give(start, pages);
            }
            prop_assert_eq!(arena.take(PAGES), Some(0));
        }
    }

    fn longest_free(taken: &[bool]) -> u32 {
        taken.split(|used| *used).map(|run| run.len() as u32).max().unwrap_or(0)
    }
}
