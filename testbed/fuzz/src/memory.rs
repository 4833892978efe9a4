//! Pages that both ends of a ring reach, in one process.
#![expect(unsafe_code, reason = "shared memory without a reference into it")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;

use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory;

/// Zeroed pages; a clone is the same pages.
#[derive(Clone, Debug)]
pub struct Pages(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    base: *mut u8,
    layout: Layout,
}

// SAFETY: the pages belong to the process, not to a thread, and are reached through raw pointers.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Pages {
    /// As many pages, at least one.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let layout = Layout::from_size_align(pages.max(1) * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the layout has at least one page.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        Self(Arc::new(Owned { base, layout }))
    }

    /// The page that lies at `address`, if it is one of these.
    #[must_use]
    pub fn page_at(&self, address: *mut u8) -> Option<usize> {
        let offset = address.addr().checked_sub(self.0.base.addr())?;
        (offset < self.0.layout.size()).then_some(offset / PAGE_SIZE)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and nobody else has it any more.
        unsafe { dealloc(self.base, self.layout) };
    }
}

// SAFETY: the pages stay allocated while any clone lives, and no reference into them is made.
unsafe impl Memory for Pages {
    fn base(&self) -> *mut u8 {
        self.0.base
    }

    fn len(&self) -> usize {
        self.0.layout.size()
    }
}

/// Some of [`Pages`], side by side, as somebody sees them whom they were granted to.
#[derive(Debug)]
pub struct Granted {
    of: Pages,
    first: usize,
    pages: usize,
    _live: Arc<()>,
}

impl Granted {
    /// `pages` pages from page `first` of `of` on, which has them; `live` is held as long as they
    /// are mapped.
    #[must_use]
    pub fn new(of: &Pages, first: usize, pages: usize, live: &Arc<()>) -> Self {
        assert!((first + pages) * PAGE_SIZE <= of.len());
        Self { of: of.clone(), first, pages, _live: Arc::clone(live) }
    }
}

// SAFETY: the pages lie in `of` (checked in `new`), which stays allocated while `self` lives.
unsafe impl Memory for Granted {
    fn base(&self) -> *mut u8 {
        self.of.base().wrapping_add(self.first * PAGE_SIZE)
    }

    fn len(&self) -> usize {
        self.pages * PAGE_SIZE
    }
}
