//! Granted memory that callers use as request buffers themselves, so that nothing is copied.
//!
//! An arena is granted to one backend domain once, for as long as it lives, readable and writable.
//! Whoever uses it trusts that backend with every byte in it, at every moment. A part of an arena is
//! a [`Lent`]; it keeps the arena alive. When another domain takes over the backend's place, the
//! arena still stands granted to the former one; its parts are then bounced like private memory.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hypervisor::memory::{Access, Granting, Memory, Revoked};
use hypervisor::{DomId, GrantRef, HostError, PAGE_SIZE};

/// Bytes that are copied at a time where a lent part has to be bounced after all.
const BOUNCE: usize = 512;

#[derive(Debug)]
struct Shared<M> {
    memory: M,
    grefs: Vec<GrantRef>,
    peer: DomId,
}

/// Granted memory to take buffers from.
#[derive(Debug)]
pub struct Arena<M> {
    shared: Arc<Shared<M>>,
}

impl<M: Memory> Arena<M> {
    /// `pages` zeroed pages, granted to `peer`.
    ///
    /// # Errors
    ///
    /// The domain has no such memory or no grant table entries left.
    pub fn new<G>(granting: &G, peer: DomId, pages: usize) -> Result<Self, HostError>
    where
        G: Granting<Memory = M>,
    {
        let memory = granting.allocate(pages, peer)?;
        let mut grefs = alloc::vec![GrantRef(0); pages];
        granting.grant(&memory, 0, Access::ReadWrite, &mut grefs)?;
        Ok(Self { shared: Arc::new(Shared { memory, grefs, peer }) })
    }

    /// Bytes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.memory.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its first byte, for callers that hand out its addresses themselves.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.shared.memory.base()
    }

    /// The part of `len` bytes at `offset`; `None` where the arena ends before that. Nothing keeps
    /// two parts from overlapping: what two requests do to the same bytes at the same time is the
    /// caller's to keep apart.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Option<Lent<M>> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => {
                Some(Lent { shared: Arc::clone(&self.shared), offset, len })
            }
            _ => None,
        }
    }

    /// Takes the memory back from the backend and frees it.
    ///
    /// # Errors
    ///
    /// The arena itself, where parts of it are still about or the backend still has a page mapped:
    /// try again later, or never, but do not reuse it.
    pub fn close<G>(self, granting: &G) -> Result<(), Self>
    where
        G: Granting<Memory = M>,
    {
        match Arc::try_unwrap(self.shared) {
            Ok(mut shared) => {
                shared.grefs.retain(|gref| granting.revoke(*gref) == Revoked::Busy);
                if shared.grefs.is_empty() {
                    Ok(())
                } else {
                    Err(Self { shared: Arc::new(shared) })
                }
            }
            Err(shared) => Err(Self { shared }),
        }
    }
}

/// Part of an arena, as a request's buffer.
#[derive(Debug)]
pub struct Lent<M> {
    shared: Arc<Shared<M>>,
    offset: usize,
    len: usize,
}

impl<M: Memory> Lent<M> {
    /// Bytes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where in its arena it begins, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Copies its bytes from `at` on out into `bytes`; too many are left out.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let len = bytes.len().min(self.len.saturating_sub(at));
        if let Some(bytes) = bytes.get_mut(..len) {
            let copied = self.shared.memory.read_at(self.offset.saturating_add(at), bytes);
            debug_assert_eq!(copied, Ok(()), "a part lies inside its arena");
        }
    }

    /// Copies `bytes` in from `at` on; too many are left out.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let len = bytes.len().min(self.len.saturating_sub(at));
        if let Some(bytes) = bytes.get(..len) {
            let copied = self.shared.memory.write_at(self.offset.saturating_add(at), bytes);
            debug_assert_eq!(copied, Ok(()), "a part lies inside its arena");
        }
    }

    /// The grant of the page at byte `at`, that byte's offset in the page, and how many bytes the
    /// page has from there on; `None` where it was granted to another domain than `peer`.
    pub(crate) fn grant(&self, peer: DomId, at: usize) -> Option<(GrantRef, usize, usize)> {
        if self.shared.peer != peer {
            return None;
        }
        let byte = self.offset.checked_add(at)?;
        let gref = self.shared.grefs.get(byte / PAGE_SIZE)?;
        let within = byte % PAGE_SIZE;
        Some((*gref, within, PAGE_SIZE.saturating_sub(within)))
    }

    pub(crate) fn store(&self, at: usize, pages: &M, offset: usize, len: usize) {
        let mut bytes = [0; BOUNCE];
        let mut done = 0_usize;
        while done < len {
            let piece = len.saturating_sub(done).min(BOUNCE);
            let Some(bytes) = bytes.get_mut(..piece) else { return };
            self.read(at.saturating_add(done), bytes);
            let copied = pages.write_at(offset.saturating_add(done), bytes);
            debug_assert_eq!(copied, Ok(()), "the pool's pages lie inside the pool");
            done = done.saturating_add(piece);
        }
    }

    pub(crate) fn load(&mut self, at: usize, pages: &M, offset: usize, len: usize) {
        let mut bytes = [0; BOUNCE];
        let mut done = 0_usize;
        while done < len {
            let piece = len.saturating_sub(done).min(BOUNCE);
            let Some(bytes) = bytes.get_mut(..piece) else { return };
            let copied = pages.read_at(offset.saturating_add(done), bytes);
            debug_assert_eq!(copied, Ok(()), "the pool's pages lie inside the pool");
            self.write(at.saturating_add(done), bytes);
            done = done.saturating_add(piece);
        }
    }
}
