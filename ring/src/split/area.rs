//! Part of a mapping, in which one of a queue's three parts lies.

use crate::shared::{Halves, Words};

/// `len` bytes from `offset` on in `M`.
#[derive(Clone, Debug)]
pub struct Area<M> {
    memory: M,
    offset: usize,
    len: usize,
}

impl<M: Words + Halves> Area<M> {
    /// `len` bytes from `offset` on in `memory`, which must be a multiple of `align` there; `None` where
    /// that cannot be.
    #[must_use]
    pub fn new(memory: M, offset: usize, len: usize, align: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= memory.bytes() && offset.is_multiple_of(align)).then_some(Self {
            memory,
            offset,
            len,
        })
    }

    /// How many bytes there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Either ring's index, as it is now.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.load(super::INDEX)
    }

    fn at(&self, offset: usize) -> usize {
        self.offset.saturating_add(offset)
    }

    #[inline]
    pub(super) fn load(&self, offset: usize) -> u16 {
        self.memory.load_half(self.at(offset))
    }

    #[inline]
    pub(super) fn store(&self, offset: usize, value: u16) {
        self.memory.store_half(self.at(offset), value);
    }

    #[inline]
    pub(super) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.memory.copy_out(self.at(offset), into);
    }

    #[inline]
    pub(super) fn copy_in(&self, offset: usize, from: &[u8]) {
        self.memory.copy_in(self.at(offset), from);
    }

    #[inline]
    pub(super) fn fence(&self) {
        self.memory.fence();
    }
}
