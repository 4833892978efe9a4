//! Our own copy of what is on the receive ring: which page was posted where.
//!
//! Backends answer receive requests in the order in which they were made, each in its own slot, so
//! a page is looked up by position. The id that a backend echoes is held against the one that was
//! given out there, generation and all.

use alloc::boxed::Box;

use hypervisor::frontend::Page;
use ring::RingIndex;

/// Places there are: slots of a ring of one page, which is all that netif has.
const PLACES: u32 = 256;

#[derive(Clone, Copy, Default)]
struct Place {
    generation: u8,
    page: Option<Page>,
}

/// One place for each slot of the ring.
pub(crate) struct Posted {
    places: Box<[Place]>,
}

impl Posted {
    pub(crate) fn new() -> Self {
        Self { places: alloc::vec![Place::default(); PLACES as usize].into_boxed_slice() }
    }

    /// The id that a page posted at `at` is to have.
    pub(crate) fn id(&self, at: RingIndex) -> u16 {
        let generation = self.places.get(number(at)).map_or(0, |place| place.generation);
        u16::from_be_bytes([generation, low(at)])
    }

    /// Notes that `page` was posted at `at`.
    pub(crate) fn post(&mut self, at: RingIndex, page: Page) {
        if let Some(place) = self.places.get_mut(number(at)) {
            debug_assert!(place.page.is_none(), "the ring has no slot twice");
            place.page = Some(page);
        }
    }

    /// Whether `id` is the one that was given out at `at`.
    pub(crate) fn is(&self, at: RingIndex, id: u16) -> bool {
        self.id(at) == id
    }

    /// Takes the page at `at`, which was answered.
    pub(crate) fn take(&mut self, at: RingIndex) -> Option<Page> {
        let place = self.places.get_mut(number(at))?;
        place.generation = place.generation.wrapping_add(1);
        place.page.take()
    }
}

fn number(at: RingIndex) -> usize {
    (at.0 % PLACES) as usize
}

fn low(at: RingIndex) -> u8 {
    let [low, ..] = at.0.to_le_bytes();
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_one_place_and_one_use() {
        let mut posted = Posted::new();
        let at = RingIndex(u32::MAX);
        let id = posted.id(at);
        posted.post(at, Page::default());
        assert!(posted.is(at, id) && !posted.is(at.add(1), id));
        assert_eq!(posted.take(at), Some(Page::default()));
        assert_eq!(posted.take(at), None, "a page is taken once");
        assert!(!posted.is(at, id), "the place, used again, has another id");
    }
}
