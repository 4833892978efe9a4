//! A page that both ends of a ring reach.
#![expect(unsafe_code, reason = "a page without a reference into it")]

use alloc::alloc::{Layout, alloc_zeroed};

use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory;

/// A zeroed page; a clone is the same page. It is never freed.
#[derive(Clone)]
pub(crate) struct Page(*mut u8);

impl Page {
    /// A page of its own, if there is one left.
    pub(crate) fn take() -> Option<Self> {
        let layout = Layout::from_size_align(PAGE_SIZE, PAGE_SIZE).ok()?;
        // SAFETY: the layout has a page.
        let base = unsafe { alloc_zeroed(layout) };
        (!base.is_null()).then_some(Self(base))
    }
}

// SAFETY: the page is never freed, and no reference into it is made.
unsafe impl Memory for Page {
    fn base(&self) -> *mut u8 {
        self.0
    }

    fn len(&self) -> usize {
        PAGE_SIZE
    }
}
