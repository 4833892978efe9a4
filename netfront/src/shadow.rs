//! Our own copy of what is on the transmit ring.
//!
//! The ring is the backend's to scribble on, so nothing is ever read back from a request slot. Which
//! page a response frees is looked up here by its id (advisories 376, 391): an id that is not in use,
//! or one that was answered before, is a lie and ends the connection. An id carries the generation of
//! its entry, so an answer that comes twice is told from one to the entry's next use, for as many uses
//! as sixteen bits leave room for. Answers to extras name nothing; they are counted.

use alloc::boxed::Box;
use alloc::vec::Vec;

use hypervisor::frontend::Page;

/// Entries there are: as many as a ring of one page has slots, which is all that netif has.
const ENTRIES: u16 = 256;

/// How a response did not match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lie {
    /// No request with that id is on the ring.
    Id,
    /// An extra was answered that is not on the ring.
    Extra,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    generation: u8,
    used: bool,
    /// What holds the request's bytes; a request that only carries an extra has none.
    page: Option<Page>,
}

/// One entry for each slot of the ring.
pub(crate) struct Shadow {
    entries: Box<[Entry]>,
    free: Vec<u8>,
    /// Extras that are on the ring.
    extras: u32,
}

impl Shadow {
    pub(crate) fn new() -> Self {
        Self {
            entries: alloc::vec![Entry::default(); usize::from(ENTRIES)].into_boxed_slice(),
            free: (0..=u8::MAX).rev().collect(),
            extras: 0,
        }
    }

    /// How many requests, extras apart, are on the ring.
    pub(crate) fn in_flight(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    /// Notes a request with `page`; gives the id to ask it by. There is none where as many are on
    /// the ring as there are slots.
    pub(crate) fn ask(&mut self, page: Option<Page>) -> Option<u16> {
        let index = self.free.pop()?;
        let entry = self.entries.get_mut(usize::from(index))?;
        entry.used = true;
        entry.page = page;
        Some(u16::from_be_bytes([entry.generation, index]))
    }

    /// Notes `count` extras.
    pub(crate) fn ask_extras(&mut self, count: usize) {
        self.extras = self.extras.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Looks up what the response with `id` answers, and frees its entry for the next use.
    pub(crate) fn answered(&mut self, id: u16) -> Result<Option<Page>, Lie> {
        let [generation, index] = id.to_be_bytes();
        let entry = self.entries.get_mut(usize::from(index)).ok_or(Lie::Id)?;
        if !entry.used || entry.generation != generation {
            return Err(Lie::Id);
        }
        entry.used = false;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        Ok(entry.page.take())
    }

    /// An extra was answered.
    pub(crate) fn answered_extra(&mut self) -> Result<(), Lie> {
        self.extras = self.extras.checked_sub(1).ok_or(Lie::Extra)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_once() {
        let mut shadow = Shadow::new();
        let id = shadow.ask(None).unwrap();
        assert_eq!(shadow.in_flight(), 1);
        assert_eq!(shadow.answered(id), Ok(None));
        assert_eq!(shadow.answered(id), Err(Lie::Id));
        let again = shadow.ask(None).unwrap();
        assert_ne!(again, id, "the same entry, used again, has another id");
        assert_eq!(shadow.answered(id), Err(Lie::Id));
        assert_eq!(shadow.answered(again), Ok(None));
        assert_eq!(shadow.in_flight(), 0);
    }

    #[test]
    fn wild_ids_are_lies_and_change_nothing() {
        let mut shadow = Shadow::new();
        let id = shadow.ask(None).unwrap();
        for wild in (0..=u16::MAX).filter(|wild| *wild != id) {
            assert_eq!(shadow.answered(wild), Err(Lie::Id), "{wild:#x}");
        }
        assert_eq!(shadow.answered(id), Ok(None));
    }

    #[test]
    fn there_are_as_many_as_slots() {
        let mut shadow = Shadow::new();
        let ids: Vec<u16> = (0..ENTRIES).map(|_| shadow.ask(None).unwrap()).collect();
        assert_eq!(shadow.ask(None), None);
        assert_eq!(shadow.answered(ids[77]), Ok(None));
        assert!(shadow.ask(None).is_some());
    }

    #[test]
    fn extras_are_answered_as_often_as_they_were_there() {
        let mut shadow = Shadow::new();
        assert_eq!(shadow.answered_extra(), Err(Lie::Extra));
        shadow.ask_extras(2);
        assert_eq!((shadow.answered_extra(), shadow.answered_extra()), (Ok(()), Ok(())));
        assert_eq!(shadow.answered_extra(), Err(Lie::Extra));
    }
}
