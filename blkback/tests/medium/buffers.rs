//! Buffers for the engines' tests: raw pages, cut as a guest's segments are.

use uring::{Buffers, Piece};

/// Room for each piece, so that every one begins at a page as a segment's grant does.
const PAGE: usize = 4096;

/// Pieces that each begin at a page of their own.
pub(crate) struct Pages {
    base: *mut u8,
    layout: std::alloc::Layout,
    pieces: Vec<Piece>,
}

// SAFETY: the allocation lives as long as `self`, and is only reached through raw pointers.
unsafe impl Buffers for Pages {
    fn pieces(&self) -> &[Piece] {
        &self.pieces
    }
}

impl Pages {
    /// Pieces of these lengths, which hold as much of `bytes` as there is.
    pub(crate) fn new(lens: &[usize], bytes: &[u8]) -> Self {
        let room: usize = lens.iter().map(|len| len.next_multiple_of(PAGE)).sum();
        let layout = std::alloc::Layout::from_size_align(room.max(PAGE), PAGE).unwrap();
        // SAFETY: the layout is of a page or more.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!base.is_null());
        let (mut at, mut taken, mut pieces) = (0, 0, Vec::new());
        for &len in lens {
            let piece = Piece { base: base.wrapping_add(at), len: len as u32, fixed: None };
            let from = &bytes[taken.min(bytes.len())..(taken + len).min(bytes.len())];
            // SAFETY: the piece lies in the allocation made above.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), piece.base, from.len()) };
            pieces.push(piece);
            at += len.next_multiple_of(PAGE);
            taken += len;
        }
        Self { base, layout, pieces }
    }

    /// No bytes at all.
    pub(crate) fn none() -> Self {
        Self::new(&[], &[])
    }

    /// Where all of it lies: to be registered as buffer `slot`, which the pieces name from here on.
    pub(crate) fn registered(&mut self, slot: u16) -> (*mut u8, usize) {
        for piece in &mut self.pieces {
            piece.fixed = Some(slot);
        }
        (self.base, self.layout.size())
    }

    /// What the pieces hold now.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            // SAFETY: the piece lies in our allocation, and no operation is under way on it.
            let piece = unsafe { std::slice::from_raw_parts(piece.base, piece.len as usize) };
            bytes.extend_from_slice(piece);
        }
        bytes
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: made with this layout, and freed only here.
        unsafe { std::alloc::dealloc(self.base, self.layout) };
    }
}
