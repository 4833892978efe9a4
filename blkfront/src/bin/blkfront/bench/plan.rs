//! Which request comes next, and what is known of each block.

use blkfront::Operation;

use crate::args::Mode;
use crate::pattern;

impl Mode {
    /// Whether it changes the disk.
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Randread)
    }
}

/// One queue's part of the disk, in blocks.
pub(crate) struct Plan {
    mode: Mode,
    block: u64,
    first: u64,
    blocks: u64,
    random: u64,
    cursor: u64,
    /// How often each block was written, where that is checked: even when it is at rest, odd while a
    /// write is under way.
    known: Option<Vec<Block>>,
}

#[derive(Clone, Copy, Default)]
struct Block {
    generation: u32,
    busy: bool,
}

/// A request to be made.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    pub(crate) operation: Operation,
    pub(crate) offset: u64,
    /// Which writing of the block this is, or is expected to be found; 0 where nobody knows.
    pub(crate) generation: u32,
}

impl Plan {
    pub(crate) fn new(
        mode: Mode,
        block: u64,
        first: u64,
        blocks: u64,
        verify: bool,
        seed: u64,
    ) -> Self {
        let known =
            verify.then(|| vec![Block::default(); usize::try_from(blocks).unwrap_or(usize::MAX)]);
        Self { mode, block, first, blocks, random: pattern::next(seed), cursor: 0, known }
    }

    pub(crate) fn verifies(&self) -> bool {
        self.known.is_some()
    }

    /// The next request; `None` where each block that was tried has one under way.
    pub(crate) fn next(&mut self) -> Option<Next> {
        for _ in 0..64 {
            self.random = pattern::next(self.random);
            let index = match self.mode {
                Mode::Read | Mode::Write => {
                    let index = self.cursor;
                    self.cursor = index.wrapping_add(1).checked_rem(self.blocks).unwrap_or(0);
                    index
                }
                _ => (self.random >> 16).checked_rem(self.blocks).unwrap_or(0),
            };
            let write = match self.mode {
                Mode::Read | Mode::Randread => false,
                Mode::Write | Mode::Randwrite => true,
                Mode::Randrw => self.random & 1 == 1,
            };
            let operation = if write { Operation::Write } else { Operation::Read };
            let offset = self.first.saturating_add(index).saturating_mul(self.block);
            let Some(known) = &mut self.known else {
                return Some(Next { operation, offset, generation: 0 });
            };
            let block = known.get_mut(usize::try_from(index).ok()?)?;
            if block.busy {
                continue;
            }
            block.busy = true;
            if write {
                block.generation = block.generation.saturating_add(1);
            }
            return Some(Next { operation, offset, generation: block.generation });
        }
        None
    }

    /// A request is done.
    pub(crate) fn done(&mut self, offset: u64) {
        let index = (offset.checked_div(self.block).unwrap_or(0)).saturating_sub(self.first);
        if let Some(known) = &mut self.known
            && let Some(block) = usize::try_from(index).ok().and_then(|i| known.get_mut(i))
        {
            block.busy = false;
        }
    }

    /// From now on: every block that was written, once, to be read back.
    pub(crate) fn written(&self) -> Vec<Next> {
        let known = self.known.as_deref().unwrap_or_default();
        (0_u64..)
            .zip(known)
            .filter(|(_, block)| block.generation > 0)
            .map(|(index, block)| Next {
                operation: Operation::Read,
                offset: self.first.saturating_add(index).saturating_mul(self.block),
                generation: block.generation,
            })
            .collect()
    }
}
