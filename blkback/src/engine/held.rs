//! An operation's buffers as the medium needs them.
//!
//! Past the page cache, every piece must begin and end at the medium's own multiples. A guest may cut
//! a request of whole 4096-byte sectors into segments of 512-byte units that do not; such a request
//! goes by way of memory that is aligned.
#![expect(unsafe_code, reason = "vouches for its own memory and passes on what others vouch for")]

use ::uring::{Buffers, Piece};

use crate::engine::pieces::{Aligned, Way, total};
use crate::image::Transfers;

/// What an operation holds, and a stand-in for it where one is needed.
#[derive(Debug)]
pub(super) struct Held<T> {
    inner: T,
    stand_in: Option<Aligned>,
}

// SAFETY: the stand-in is an allocation that lives as long as `self`, stays where it is when `self` is
// moved, and is reached through its address only; without one, `T`'s implementor vouches.
unsafe impl<T: Buffers> Buffers for Held<T> {
    fn pieces(&self) -> &[Piece] {
        match &self.stand_in {
            Some(memory) => memory.pieces(),
            None => self.inner.pieces(),
        }
    }
}

impl<T: Buffers> Held<T> {
    /// Takes `inner` as it is.
    pub(super) const fn plain(inner: T) -> Self {
        Self { inner, stand_in: None }
    }

    /// Takes `inner` for a transfer, with a stand-in where the medium could not use its pieces.
    ///
    /// # Errors
    ///
    /// There is no memory for one.
    pub(super) fn for_transfer(inner: T, way: Way, transfers: Transfers) -> Result<Self, T> {
        let Transfers::Direct { memory, offset } = transfers else {
            return Ok(Self::plain(inner));
        };
        if inner.pieces().iter().all(|piece| fits(piece, memory, offset)) {
            return Ok(Self::plain(inner));
        }
        let align = memory.max(offset) as usize;
        let stand_in = u32::try_from(total(&inner)).ok().and_then(|len| Aligned::new(len, align));
        let Some(stand_in) = stand_in else { return Err(inner) };
        if way == Way::Write {
            stand_in.copy(Way::Write, &inner, u64::MAX);
        }
        Ok(Self { inner, stand_in: Some(stand_in) })
    }

    /// Gives back what was held, after `moved` bytes were read into it.
    pub(super) fn after(self, way: Way, moved: u64) -> T {
        if let (Some(memory), Way::Read) = (&self.stand_in, way) {
            memory.copy(Way::Read, &self.inner, moved);
        }
        self.inner
    }

    /// Gives back what was held.
    pub(super) fn into_inner(self) -> T {
        self.inner
    }
}

fn fits(piece: &Piece, memory: u32, offset: u32) -> bool {
    let at_multiple = |value: usize, unit: u32| value.is_multiple_of(unit.max(1) as usize);
    at_multiple(piece.base.addr(), memory) && at_multiple(piece.len as usize, offset)
}
