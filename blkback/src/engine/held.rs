//! An operation's buffers as the medium needs them.
//!
//! Past the page cache, every piece must begin and end at the medium's own multiples. A guest may cut
//! a request of whole 4096-byte sectors into segments of 512-byte units that do not; such a request
//! goes by way of memory that is aligned. So does a short one whose pages the kernel would find only by a
//! long way round, as it does those that gntdev maps.
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

    /// Takes `inner` for a transfer, with a stand-in where the medium could not use its pieces, and where it has
    /// no more than `copied` bytes.
    ///
    /// # Errors
    ///
    /// There is no memory for one.
    pub(super) fn for_transfer(
        inner: T,
        way: Way,
        transfers: Transfers,
        copied: u64,
    ) -> Result<Self, T> {
        let Transfers::Direct { memory, offset } = transfers else {
            return Ok(Self::plain(inner));
        };
        if total(&inner) > copied && inner.pieces().iter().all(|piece| fits(piece, memory, offset))
        {
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

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT: Transfers = Transfers::Direct { memory: 512, offset: 512 };

    #[derive(Debug)]
    struct Ours(Aligned);

    // SAFETY: the memory lives as long as `self`, stays where it is, and is reached by its address only.
    unsafe impl Buffers for Ours {
        fn pieces(&self) -> &[Piece] {
            self.0.pieces()
        }
    }

    fn filled(len: u32, with: u8) -> Ours {
        let memory = Ours(Aligned::new(len, 512).unwrap());
        for piece in memory.pieces() {
            crate::engine::pieces::fill(piece.base, &vec![with; len as usize]);
        }
        memory
    }

    fn bytes(memory: &impl Buffers) -> Vec<u8> {
        let mut bytes = vec![0; total(memory) as usize];
        let mut at = 0;
        for piece in memory.pieces() {
            crate::engine::pieces::take(piece.base, &mut bytes[at..at + piece.len as usize]);
            at += piece.len as usize;
        }
        bytes
    }

    /// Where a transfer is made, and whether that is where it was asked for.
    fn place(held: &Held<Ours>) -> (Piece, bool) {
        (held.pieces()[0], held.pieces() == held.inner.pieces())
    }

    #[test]
    fn short_transfers_are_copied_where_that_is_cheaper() {
        for (copied, itself) in [(0, true), (4095, true), (4096, false), (16384, false)] {
            let held = Held::for_transfer(filled(4096, 7), Way::Write, DIRECT, copied).unwrap();
            assert_eq!(place(&held).1, itself, "{copied}");
            assert_eq!(bytes(&held), [7; 4096]);
            let held = Held::for_transfer(filled(4096, 7), Way::Read, DIRECT, copied).unwrap();
            crate::engine::pieces::fill(place(&held).0.base, &[9; 4096]);
            let moved = held.after(Way::Read, 512);
            let read = if itself { 4096 } else { 512 };
            assert_eq!(bytes(&moved)[..read], [9; 4096][..read]);
            assert_eq!(bytes(&moved)[read..], [7; 4096][read..]);
        }
        let buffered = Held::for_transfer(filled(512, 1), Way::Read, Transfers::Buffered, 4096);
        assert!(place(&buffered.unwrap()).1);
    }
}
