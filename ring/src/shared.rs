//! The words and slots that the two ends share: the only place that touches them.
//!
//! Indexes are loaded with acquire and stored with release order, so that whoever sees a producer
//! index also sees the slots before it. Slots move in relaxed atomic words: a peer that writes
//! while they are read makes a torn copy and nothing worse, and no compiler may read one twice.
//! Where one end must see the other's index after having shown its own, there is a full fence,
//! in the places where ring.h has `xen_mb()`.
//!
//! [`Words`] stands between the roles and the memory so that loom can run the same code over its own
//! atomics. Source: io/ring.h (RELEASE-4.17). Units: bytes.
#![expect(unsafe_code, reason = "atomic access to memory that another domain writes")]

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use hypervisor::memory::Memory;

use crate::layout::{self, Word};
use crate::{Fault, RingIndex};

/// Memory seen as a ring sees it. Everything that is [`Memory`] is this.
///
/// What lies outside the memory reads as zero and is not written; no role asks for that.
pub trait Words {
    /// How many bytes there are.
    fn bytes(&self) -> usize;

    /// Loads an index, acquiring what was released with it.
    fn load(&self, word: Word) -> u32;

    /// Stores an index, releasing what was written before.
    fn store(&self, word: Word, value: u32);

    /// Orders every access before it before every access after it.
    fn fence(&self);

    /// Copies out of a slot.
    fn copy_out(&self, offset: usize, into: &mut [u8]);

    /// Copies into a slot.
    fn copy_in(&self, offset: usize, from: &[u8]);
}

impl<M: Memory> Words for M {
    #[inline]
    fn bytes(&self) -> usize {
        self.len()
    }

    #[inline]
    fn load(&self, word: Word) -> u32 {
        let Ok(at) = self.at(word.offset(), 4) else { return 0 };
        // SAFETY: `at` found the word inside the memory, which stays mapped while `self` is
        // borrowed; the base is page-aligned and the offset a multiple of 4; no reference to
        // these bytes exists, and whoever else reaches them does so atomically or is another
        // domain.
        unsafe { AtomicU32::from_ptr(at.cast()) }.load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, word: Word, value: u32) {
        let Ok(at) = self.at(word.offset(), 4) else { return };
        // SAFETY: as in `load`. A role stores only to a ring that it may write.
        unsafe { AtomicU32::from_ptr(at.cast()) }.store(value, Ordering::Release);
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let Ok(at) = self.at(offset, into.len()) else { return };
        if offset.is_multiple_of(8) && into.len().is_multiple_of(8) {
            for (n, chunk) in into.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                // SAFETY: the chunk's counterpart lies inside what `at` found, and is aligned as
                // the page-aligned base, the offset and every chunk before it are.
                let word = unsafe { AtomicU64::from_ptr(at.cast::<u64>().wrapping_add(n)) };
                *chunk = word.load(Ordering::Relaxed).to_ne_bytes();
            }
        } else if offset.is_multiple_of(4) && into.len().is_multiple_of(4) {
            for (n, chunk) in into.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                // SAFETY: as above, in units of 4.
                let word = unsafe { AtomicU32::from_ptr(at.cast::<u32>().wrapping_add(n)) };
                *chunk = word.load(Ordering::Relaxed).to_ne_bytes();
            }
        } else {
            for (n, byte) in into.iter_mut().enumerate() {
                // SAFETY: as above; a byte is always aligned.
                let word = unsafe { AtomicU8::from_ptr(at.wrapping_add(n)) };
                *byte = word.load(Ordering::Relaxed);
            }
        }
    }

    #[inline]
    fn copy_in(&self, offset: usize, from: &[u8]) {
        let Ok(at) = self.at(offset, from.len()) else { return };
        if offset.is_multiple_of(8) && from.len().is_multiple_of(8) {
            for (n, chunk) in from.as_chunks::<8>().0.iter().enumerate() {
                // SAFETY: as in `copy_out`.
                let word = unsafe { AtomicU64::from_ptr(at.cast::<u64>().wrapping_add(n)) };
                word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
            }
        } else if offset.is_multiple_of(4) && from.len().is_multiple_of(4) {
            for (n, chunk) in from.as_chunks::<4>().0.iter().enumerate() {
                // SAFETY: as in `copy_out`.
                let word = unsafe { AtomicU32::from_ptr(at.cast::<u32>().wrapping_add(n)) };
                word.store(u32::from_ne_bytes(*chunk), Ordering::Relaxed);
            }
        } else {
            for (n, byte) in from.iter().enumerate() {
                // SAFETY: as in `copy_out`.
                let word = unsafe { AtomicU8::from_ptr(at.wrapping_add(n)) };
                word.store(*byte, Ordering::Relaxed);
            }
        }
    }
}

/// Memory with indexes of 16 bits, as virtqueues have them. Everything that is [`Memory`] is this.
pub trait Halves {
    /// Loads the 16 bits at `offset`, a multiple of 2, acquiring what was released with them.
    fn load_half(&self, offset: usize) -> u16;

    /// Stores 16 bits, releasing what was written before.
    fn store_half(&self, offset: usize, value: u16);
}

impl<M: Memory> Halves for M {
    #[inline]
    fn load_half(&self, offset: usize) -> u16 {
        match self.at(offset, 2) {
            Ok(at) if offset.is_multiple_of(2) => {
                // SAFETY: as in `load`, with an offset that is a multiple of 2.
                let half = unsafe { AtomicU16::from_ptr(at.cast()) };
                u16::from_le(half.load(Ordering::Acquire))
            }
            _ => 0,
        }
    }

    #[inline]
    fn store_half(&self, offset: usize, value: u16) {
        let Ok(at) = self.at(offset, 2) else { return };
        if offset.is_multiple_of(2) {
            // SAFETY: as in `load_half`.
            unsafe { AtomicU16::from_ptr(at.cast()) }.store(value.to_le(), Ordering::Release);
        }
    }
}

/// Memory that was found large enough for a ring, and how many slots it has.
pub(crate) struct Shared<M> {
    memory: M,
    slots: u32,
}

impl<M: Words> Shared<M> {
    /// `memory` as a ring whose slots have `slot` bytes.
    pub(crate) fn new(memory: M, slot: usize) -> Result<Self, Fault> {
        let bytes = memory.bytes();
        match layout::slots(bytes, slot) {
            0 => Err(Fault::RingTooSmall { bytes, slot }),
            slots => Ok(Self { memory, slots }),
        }
    }

    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    pub(crate) fn into_memory(self) -> M {
        self.memory
    }

    #[inline]
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    #[inline]
    pub(crate) fn load(&self, word: Word) -> RingIndex {
        RingIndex(self.memory.load(word))
    }

    #[inline]
    pub(crate) fn store(&self, word: Word, value: RingIndex) {
        self.memory.store(word, value.0);
    }

    /// Makes a producer's step visible and says whether its consumer's `event` lies in it.
    #[inline]
    pub(crate) fn publish(
        &self,
        producer: Word,
        event: Word,
        old: RingIndex,
        new: RingIndex,
    ) -> bool {
        if old == new {
            return false;
        }
        self.store(producer, new);
        // The consumer arms its event, then looks at the producer index; we moved the index and
        // now look at the event. With a fence on each side at least one of us sees the other.
        self.memory.fence();
        new.passes(self.load(event), old)
    }

    /// Asks to be told of whatever comes after `consumed`; look at the producer index afterwards.
    #[inline]
    pub(crate) fn arm(&self, event: Word, consumed: RingIndex) {
        self.store(event, consumed.add(1));
        self.memory.fence();
    }

    /// Copies the start of the slot at `index` out.
    #[inline]
    pub(crate) fn copy_out(&self, index: RingIndex, slot: usize, into: &mut [u8]) {
        self.memory.copy_out(self.offset(index, slot), into);
    }

    /// Copies `from` over the start of the slot at `index`.
    #[inline]
    pub(crate) fn copy_in(&self, index: RingIndex, slot: usize, from: &[u8]) {
        self.memory.copy_in(self.offset(index, slot), from);
    }

    #[inline]
    fn offset(&self, index: RingIndex, slot: usize) -> usize {
        let number = index.0 & self.slots.wrapping_sub(1);
        // Cannot wrap: `new` found all slots inside the memory.
        layout::HEADER.wrapping_add((number as usize).wrapping_mul(slot))
    }
}
