//! Memory that a request moves bytes from or into.
//!
//! Two kinds. *Private* memory is the caller's own: its bytes are copied to or from the queue's
//! granted pages (*bounced*), so the backend never reaches anything but those pages. *Lent* memory
//! comes from an [`Arena`](crate::arena::Arena) whose pages are themselves granted to the backend:
//! nothing is copied, and the backend can change the bytes at any time as long as the arena lives.
//! Lending is for callers that trust their backend, or that copy what they read before they look.

use alloc::boxed::Box;
use alloc::vec::Vec;

use hypervisor::memory::Memory;

use crate::arena::Lent;

/// Memory of a request.
///
/// `at` counts bytes from the buffer's beginning. Calls outside [`len`](Self::len) are this crate's
/// error; implementations then do nothing.
pub trait Buffer {
    /// Granted pages that this buffer may be part of.
    type Pages: Memory;

    /// Bytes it holds.
    fn len(&self) -> usize;

    /// Whether it holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `len` bytes from `at` on into `pages` at `offset`.
    fn store(&self, at: usize, pages: &Self::Pages, offset: usize, len: usize);

    /// Copies `len` bytes from `pages` at `offset` into this buffer from `at` on.
    fn load(&mut self, at: usize, pages: &Self::Pages, offset: usize, len: usize);

    /// Where in granted memory it lies, if it does.
    fn lent(&self) -> Option<&Lent<Self::Pages>> {
        None
    }
}

/// A buffer in private memory: anything that is bytes.
#[derive(Debug)]
pub struct Private<T, M> {
    bytes: T,
    pages: core::marker::PhantomData<fn() -> M>,
}

impl<T, M> Private<T, M> {
    /// A request's memory made of `bytes`.
    pub fn new(bytes: T) -> Self {
        Self { bytes, pages: core::marker::PhantomData }
    }

    /// The bytes again.
    pub fn into_inner(self) -> T {
        self.bytes
    }
}

impl<M> Private<Vec<u8>, M> {
    /// No bytes at all, for a flush or a discard.
    #[must_use]
    pub fn nothing() -> Self {
        Self::new(Vec::new())
    }
}

impl<M> Private<Box<[u8]>, M> {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self::new(alloc::vec![0; len].into_boxed_slice())
    }
}

impl<T, M> core::ops::Deref for Private<T, M> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.bytes
    }
}

impl<T, M> core::ops::DerefMut for Private<T, M> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.bytes
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>, M: Memory> Buffer for Private<T, M> {
    type Pages = M;

    fn len(&self) -> usize {
        self.bytes.as_ref().len()
    }

    fn store(&self, at: usize, pages: &M, offset: usize, len: usize) {
        let end = at.saturating_add(len);
        if let Some(bytes) = self.bytes.as_ref().get(at..end) {
            let copied = pages.write_at(offset, bytes);
            debug_assert_eq!(copied, Ok(()), "the pool's pages lie inside the pool");
        }
    }

    fn load(&mut self, at: usize, pages: &M, offset: usize, len: usize) {
        let end = at.saturating_add(len);
        if let Some(bytes) = self.bytes.as_mut().get_mut(at..end) {
            let copied = pages.read_at(offset, bytes);
            debug_assert_eq!(copied, Ok(()), "the pool's pages lie inside the pool");
        }
    }
}

/// Either kind, chosen for each request.
#[derive(Debug)]
pub enum Either<T, M> {
    /// Private memory.
    Private(Private<T, M>),
    /// Part of an arena.
    Lent(Lent<M>),
}

impl<T: AsRef<[u8]> + AsMut<[u8]>, M: Memory> Buffer for Either<T, M> {
    type Pages = M;

    fn len(&self) -> usize {
        match self {
            Self::Private(private) => private.len(),
            Self::Lent(lent) => lent.len(),
        }
    }

    fn store(&self, at: usize, pages: &M, offset: usize, len: usize) {
        match self {
            Self::Private(private) => private.store(at, pages, offset, len),
            Self::Lent(lent) => lent.store(at, pages, offset, len),
        }
    }

    fn load(&mut self, at: usize, pages: &M, offset: usize, len: usize) {
        match self {
            Self::Private(private) => private.load(at, pages, offset, len),
            Self::Lent(lent) => lent.load(at, pages, offset, len),
        }
    }

    fn lent(&self) -> Option<&Lent<M>> {
        match self {
            Self::Private(_) => None,
            Self::Lent(lent) => Some(lent),
        }
    }
}
