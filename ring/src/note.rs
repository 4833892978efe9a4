//! What a backend leaves on its ring about answers that it is about to write.
//!
//! An answer lies over the request in its slot, and whoever is killed between writing answers and
//! publishing them leaves slots of which nobody knows which of the two they hold. A backend of a protocol that is
//! answered in order, and keeps nothing outside its process, says first how many slots those are: here, in
//! the part of the ring's page that no protocol uses. The next backend finds there what it must not read as
//! requests. An answer that keeps nothing of its request's id has that noted as well.
//!
//! ```text
//!  20     24     28            32                 56
//!  +------+------+-------------+---- ... ---------+------
//!  | from | to   | place+1, id | up to six more   | MARK
//!  +------+------+-------------+---- ... ---------+------
//! ```
//!
//! A note holds as long as `from` is what the ring has as published; it is written from its end to its
//! beginning. Trust: the frontend may write it too, and then harms nobody but itself: `to` is held
//! against the ring. Source: `__pad` of `DEFINE_RING_TYPES` in io/ring.h (RELEASE-4.17), which
//! `SHARED_RING_INIT` zeroes. Units: bytes.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::RingIndex;
use crate::layout::MARK;
use crate::shared::Words;

/// Where it lies: behind `pvt`.
const FROM: usize = 20;
const TO: usize = FROM + 4;
const IDS: usize = TO + 4;

/// The most ids that one note has room for.
pub const MOST_IDS: usize = (MARK - IDS) / 4;

/// Answers that another backend may have written and did not publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    slots: u32,
    ids: [(u16, u16); MOST_IDS],
}

impl Note {
    /// How many slots, from the first that has no published answer on.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// The id of the request that was in slot `place` of these, counted from 0, where it was noted.
    #[must_use]
    pub fn id(&self, place: u32) -> Option<u16> {
        let noted =
            |(at, id): &(u16, u16)| (u32::from(*at) == place.wrapping_add(1)).then_some(*id);
        self.ids.iter().find_map(noted)
    }

    /// All that were noted, by place.
    pub fn ids(&self) -> impl Iterator<Item = (u32, u16)> + use<> {
        let noted = self.ids.into_iter().take_while(|(at, _)| *at != 0);
        noted.map(|(at, id)| (u32::from(at).wrapping_sub(1), id))
    }

    /// Notes on the ring in `memory`, of which answers up to `published` are visible, that the next ones up to
    /// `to` are about to be written. Of `ids`, each with its place, the first [`MOST_IDS`] are noted.
    #[inline]
    pub(crate) fn leave<M: Words>(
        memory: &M,
        published: RingIndex,
        to: RingIndex,
        ids: impl Iterator<Item = (u32, u16)>,
    ) {
        let mut at = IDS;
        for (place, id) in ids.take(MOST_IDS) {
            let [a, b, ..] = place.wrapping_add(1).to_le_bytes();
            let [c, d] = id.to_le_bytes();
            memory.copy_in(at, &[a, b, c, d]);
            at = at.wrapping_add(4);
        }
        if at < MARK {
            memory.copy_in(at, &[0; 4]);
        }
        // A process is killed between two of its own instructions: their order is all that counts.
        compiler_fence(Ordering::SeqCst);
        memory.copy_in(TO, &to.0.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
        memory.copy_in(FROM, &published.0.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
    }

    /// What was noted on the ring in `memory`, of which answers up to `published` are visible and requests up
    /// to `produced` are there. Nothing, where all that was written was published.
    pub(crate) fn find<M: Words>(
        memory: &M,
        published: RingIndex,
        produced: RingIndex,
    ) -> Option<Self> {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            memory.copy_out(at, &mut bytes);
            bytes
        };
        let [from, to] = [FROM, TO].map(|at| RingIndex(u32::from_le_bytes(word(at))));
        let slots = to.since(published);
        if from != published || slots == 0 || slots > produced.since(published) {
            return None;
        }
        let mut ids = [(0, 0); MOST_IDS];
        for (n, noted) in ids.iter_mut().enumerate() {
            let [a, b, c, d] = word(IDS.wrapping_add(n.wrapping_mul(4)));
            *noted = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            if noted.0 == 0 {
                break;
            }
        }
        Some(Self { slots, ids })
    }
}
