//! Pages that both ends of a ring reach, in one process.
#![expect(unsafe_code, reason = "shared memory without a reference into it")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;

use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory;

/// Zeroed pages; a clone is the same pages.
#[derive(Clone)]
pub struct Pages(Arc<Owned>);

struct Owned {
    base: *mut u8,
    layout: Layout,
}

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
