//! Bytes of a guest, kept reachable for as long as an operation uses them.
//!
//! A [`Hold`] owns a mapping or a copy; [`Reached`] owns the holds of one request together with the
//! pieces that were derived from them and from nothing else. That is the whole argument for the
//! two unsafe implementations here.
#![expect(unsafe_code, reason = "vouches to the engines for addresses that holds keep alive")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::rc::Rc;

use hypervisor::PAGE_SIZE;
use hypervisor::memory::{Memory, OutOfRange};
use uring::{Buffers, Piece};

/// What keeps some of a guest's bytes reachable.
#[derive(Debug)]
pub enum Hold<M> {
    /// A page that stays mapped between requests.
    Kept(Rc<M>),
    /// Pages mapped for this request alone.
    Mapped(M),
    /// Our own memory, which is copied from or to the guest's.
    Copied(Bounce),
}

// SAFETY: each variant owns (or, for `Kept`, shares the ownership of) memory for which the same
// holds: the mappings by their own `Memory`, `Bounce` by its implementation below. Moving the enum
// moves the owner and not the bytes.
unsafe impl<M: Memory> Memory for Hold<M> {
    fn base(&self) -> *mut u8 {
        match self {
            Self::Kept(page) => page.base(),
            Self::Mapped(pages) => pages.base(),
            Self::Copied(bounce) => bounce.base(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Kept(page) => page.len(),
            Self::Mapped(pages) => pages.len(),
            Self::Copied(bounce) => bounce.len(),
        }
    }
}

/// Page-aligned memory of our own, zeroed when new.
#[derive(Debug)]
pub struct Bounce {
    base: NonNull<u8>,
    layout: Layout,
}

impl Bounce {
    /// Memory for at least `pages` pages; `None` where there is none left.
    #[must_use]
    pub fn new(pages: usize) -> Option<Self> {
        let bytes = pages.max(1).checked_mul(PAGE_SIZE)?;
        let layout = Layout::from_size_align(bytes, PAGE_SIZE).ok()?;
        // SAFETY: the layout's size is at least one page.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { base, layout })
    }

    /// The bytes, while no operation uses them: the exclusive borrow says so.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `base` points to that many initialised bytes, which this value owns and nothing
        // else refers to: raw addresses of them are with an operation only while that operation
        // owns this value.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed here only.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

// SAFETY: the allocation lives, readable and writable at a fixed address, until drop. References
// into it are made by `bytes` alone, under an exclusive borrow.
unsafe impl Memory for Bounce {
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn len(&self) -> usize {
        self.layout.size()
    }
}

/// One request's bytes: the holds, and the pieces that lie in them.
#[derive(Debug)]
pub struct Reached<H> {
    pieces: Vec<Piece>,
    holds: Vec<H>,
}

impl<H> Default for Reached<H> {
    fn default() -> Self {
        Self { pieces: Vec::new(), holds: Vec::new() }
    }
}

impl<H: Memory> Reached<H> {
    /// Adds `len` bytes from `offset` on in `hold`, after what is there. Bytes that directly follow
    /// the last piece extend it: engines do better with few long pieces. `fixed` is the number by
    /// which the engine knows the hold's memory.
    ///
    /// # Errors
    ///
    /// The hold has not so many bytes; nothing was added.
    pub fn push(
        &mut self,
        hold: H,
        fixed: Option<u16>,
        offset: usize,
        len: u32,
    ) -> Result<(), OutOfRange> {
        let base = hold.at(offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        self.holds.push(hold);
        if let Some(last) = self.pieces.last_mut()
            && follows(last, base)
            && let Some(longer) = last.len.checked_add(len)
        {
            last.len = longer;
            // What reaches over two holds lies in no one registered buffer.
            last.fixed = None;
        } else {
            self.pieces.push(Piece { base, len, fixed });
        }
        Ok(())
    }

    /// Gives the holds up, last first; the pieces are gone before the first of them.
    pub fn drain(&mut self) -> impl Iterator<Item = H> {
        self.pieces.clear();
        self.holds.drain(..).rev()
    }
}

impl<M> Reached<Hold<M>> {
    /// Our copy of the bytes, if that is where they are.
    pub fn copied(&mut self) -> Option<&mut [u8]> {
        match self.holds.first_mut() {
            Some(Hold::Copied(bounce)) => Some(bounce.bytes()),
            _ => None,
        }
    }
}

fn follows(last: &Piece, base: *mut u8) -> bool {
    let len = usize::try_from(last.len).unwrap_or(usize::MAX);
    std::ptr::eq(last.base.wrapping_add(len), base)
}

/// A request on its way through an engine: its ticket in the queue's table, and its bytes.
#[derive(Debug)]
pub struct InFlight<H, P> {
    pub(crate) ticket: crate::submit::Ticket,
    pub(crate) body: Box<crate::segments::Body<H, P>>,
}

// SAFETY: the pieces come from `Reached::push` alone, which takes them from holds that it keeps.
// Both sit behind a box that this value owns and nothing else reaches into, so they neither move
// nor change nor end before it does. That no Rust reference into the bytes exists is part of
// `Memory`'s contract.
unsafe impl<H: Memory, P> Buffers for InFlight<H, P> {
    fn pieces(&self) -> &[Piece] {
        &self.body.reached.pieces
    }
}
