//! Pages of this process that stand for a domain's: reached by both ends, as mapped grants are.
#![expect(unsafe_code, reason = "the seam to shared memory is an unsafe trait")]

use std::cell::UnsafeCell;
use std::sync::Arc;

use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; PAGE_SIZE]>);

/// Some zeroed pages. A clone is another mapping of the same.
#[derive(Clone)]
pub(crate) struct Pages(Arc<[Page]>);

// SAFETY: the pages are reached through `Memory` only, which hands out no references; both ends of
// a ring access its words and slots atomically.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    pub(crate) fn new(pages: usize) -> Self {
        Self((0..pages).map(|_| Page(UnsafeCell::new([0; PAGE_SIZE]))).collect())
    }
}

// SAFETY: the slice lives as long as any clone, does not move, and is `len` bytes of cells.
unsafe impl Memory for Pages {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut().cast()
    }

    fn len(&self) -> usize {
        self.0.len() * PAGE_SIZE
    }
}
