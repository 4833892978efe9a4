//! Our own copy of everything that is on the ring.
//!
//! The ring is the backend's to scribble on, so nothing is ever read back from a request slot. What
//! a response is about is looked up here by its id, and everything in the response is held against
//! what was asked (advisories 376, 391): an id that is not in use, one that was answered before, or
//! an operation other than the one asked for is a lie and ends the connection. An id carries the
//! generation of its entry, so an answer that comes twice is told from one to the entry's next use.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hypervisor::frontend::Page;

/// A piece of a job that is, was or shall be one request on the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Part {
    /// Which job.
    pub(crate) job: u32,
    /// Which bytes of it, from here...
    pub(crate) at: usize,
    /// ... on for so many. A flush or discard has none.
    pub(crate) len: usize,
    /// When it was first issued, against others.
    pub(crate) order: u64,
}

/// What was asked, as far as an answer has to match it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Asked {
    /// The operation.
    pub(crate) operation: u8,
    /// What stands in the slot's operation field instead, where that is another: a backend may echo
    /// either for an indirect request.
    pub(crate) outer: u8,
    /// The piece of a job.
    pub(crate) part: Part,
    /// How many pages of the pool hold its data.
    pub(crate) data_pages: usize,
    /// How many more hold its segments.
    pub(crate) indirect_pages: usize,
}

/// How a response did not match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lie {
    /// No request with that id is on the ring.
    Id,
    /// The request with that id asked for another operation.
    Operation,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    generation: u32,
    used: bool,
    asked: Asked,
}

/// An entry taken for a request that is being built.
#[derive(Debug)]
#[must_use = "an entry that is not used must be released"]
pub(crate) struct Slot(usize);

/// One entry for each slot of the ring.
pub(crate) struct Shadow {
    entries: Box<[Entry]>,
    free: Vec<usize>,
    /// `stride` places for each entry.
    pages: Box<[Page]>,
    stride: usize,
}

impl Shadow {
    /// Room for `slots` requests of at most `pages` pages each.
    pub(crate) fn new(slots: usize, pages: usize) -> Self {
        Self {
            entries: alloc::vec![Entry::default(); slots].into_boxed_slice(),
            free: (0..slots).rev().collect(),
            pages: alloc::vec![Page::default(); slots.saturating_mul(pages)].into_boxed_slice(),
            stride: pages,
        }
    }

    /// How many requests are on the ring.
    pub(crate) fn in_flight(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    /// An unused entry.
    pub(crate) fn reserve(&mut self) -> Option<Slot> {
        self.free.pop().map(Slot)
    }

    /// Gives an entry back unused.
    pub(crate) fn release(&mut self, slot: Slot) {
        self.free.push(slot.0);
    }

    /// Where an entry keeps its pages.
    pub(crate) fn pages_mut(&mut self, slot: &Slot) -> &mut [Page] {
        let first = slot.0.saturating_mul(self.stride);
        self.pages.get_mut(first..first.saturating_add(self.stride)).unwrap_or_default()
    }

    /// The pages of an entry, those with data first.
    pub(crate) fn pages(&self, slot: &Slot) -> &[Page] {
        let first = slot.0.saturating_mul(self.stride);
        self.pages.get(first..first.saturating_add(self.stride)).unwrap_or_default()
    }

    /// Notes what is asked under an entry; gives the id to ask it by.
    pub(crate) fn ask(&mut self, slot: Slot, asked: Asked) -> u64 {
        let Some(entry) = self.entries.get_mut(slot.0) else { return u64::MAX };
        entry.used = true;
        entry.asked = asked;
        (u64::from(entry.generation) << 32) | slot.0 as u64
    }

    /// Looks up what the response with `id` and `operation` answers, and frees its entry for
    /// the next use. The entry's pages stand until then.
    pub(crate) fn answered(&mut self, id: u64, operation: u8) -> Result<(Slot, Asked), Lie> {
        let index = usize::try_from(id & u64::from(u32::MAX)).map_err(|_| Lie::Id)?;
        let generation = u32::try_from(id >> 32).map_err(|_| Lie::Id)?;
        let entry = self.entries.get_mut(index).ok_or(Lie::Id)?;
        if !entry.used || entry.generation != generation {
            return Err(Lie::Id);
        }
        if operation != entry.asked.operation && operation != entry.asked.outer {
            return Err(Lie::Operation);
        }
        entry.used = false;
        entry.generation = entry.generation.wrapping_add(1);
        Ok((Slot(index), entry.asked))
    }

    /// Moves every part that is on the ring to `parts`, in the order in which they were issued.
    pub(crate) fn drain(&mut self, parts: &mut VecDeque<Part>) {
        parts.extend(self.entries.iter().filter(|entry| entry.used).map(|entry| entry.asked.part));
        for entry in &mut self.entries {
            entry.used = false;
            entry.generation = entry.generation.wrapping_add(1);
        }
        self.free = (0..self.entries.len()).rev().collect();
        parts.make_contiguous().sort_by_key(|part| part.order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(operation: u8, order: u64) -> Asked {
        let part = Part { order, ..Part::default() };
        Asked { operation, outer: operation, part, ..Asked::default() }
    }

    fn ask(shadow: &mut Shadow, operation: u8, order: u64) -> u64 {
        let slot = shadow.reserve().unwrap();
        shadow.ask(slot, asked(operation, order))
    }

    #[test]
    fn an_answer_counts_once() {
        let mut shadow = Shadow::new(4, 1);
        let id = ask(&mut shadow, 1, 0);
        let (slot, found) = shadow.answered(id, 1).unwrap();
        assert_eq!(found, asked(1, 0));
        shadow.release(slot);
        assert_eq!(shadow.answered(id, 1).unwrap_err(), Lie::Id);
        let again = ask(&mut shadow, 1, 1);
        assert_ne!(again, id, "the same entry, used again, has another id");
        assert_eq!(shadow.answered(id, 1).unwrap_err(), Lie::Id);
        assert_eq!(shadow.answered(again, 1).unwrap().1, asked(1, 1));
    }

    #[test]
    fn wild_ids_and_operations_are_lies() {
        let mut shadow = Shadow::new(4, 1);
        let id = ask(&mut shadow, 0, 0);
        for wild in [id + 1, id + 4, u64::MAX, id | 1 << 32, id | 1 << 63] {
            assert_eq!(shadow.answered(wild, 0).unwrap_err(), Lie::Id, "{wild:#x}");
        }
        assert_eq!(shadow.answered(id, 1).unwrap_err(), Lie::Operation);
        assert_eq!(shadow.answered(id, 0).unwrap().1, asked(0, 0), "lies change nothing");
    }

    #[test]
    fn an_indirect_request_may_be_echoed_either_way() {
        for echoed in [1, 6] {
            let mut shadow = Shadow::new(1, 1);
            let slot = shadow.reserve().unwrap();
            let id = shadow.ask(slot, Asked { operation: 1, outer: 6, ..Asked::default() });
            assert_eq!(shadow.answered(id, 0).unwrap_err(), Lie::Operation);
            assert!(shadow.answered(id, echoed).is_ok());
        }
    }

    #[test]
    fn what_was_in_flight_comes_back_in_order() {
        let mut shadow = Shadow::new(4, 1);
        let ids: Vec<u64> = (0..4).map(|order| ask(&mut shadow, 0, order)).collect();
        assert!(shadow.reserve().is_none());
        for id in [ids[0], ids[1]] {
            let (slot, _) = shadow.answered(id, 0).unwrap();
            shadow.release(slot);
        }
        ask(&mut shadow, 0, 4);
        let mut parts = VecDeque::new();
        shadow.drain(&mut parts);
        assert_eq!(parts.iter().map(|p| p.order).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(shadow.in_flight(), 0);
        assert_eq!(shadow.answered(ids[3], 0).unwrap_err(), Lie::Id);
    }
}
