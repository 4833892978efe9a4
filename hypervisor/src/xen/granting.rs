//! Offering pages to other domains, through `/dev/xen/gntalloc`.
//!
//! The device makes pages that are granted when they are born, each to one domain, read-only or not,
//! until it frees them; there are `limit` of them in all processes together (the module's parameter,
//! 1024 unless set). So [`Pages`] are memory of our own at first; granting a page puts one of the
//! device's in its place, and revoking it puts one of our own there again. What is in it is copied
//! over, and who writes to a page in just that moment loses what was written.
//!
//! A revoked page is out of the peer's reach at once, even where the peer still has it mapped: what
//! the peer has is a page that nobody else uses any more, which the kernel keeps aside and frees when
//! the peer lets go of it. So revoking is never *busy* here. (That is also all there is to do where a
//! page is mapped when this process dies.)
//!
//! A page is granted at most once at a time.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::errno::Errno;

use crate::memory::{Access, Granting, Memory as _, OutOfRange, Revoked};
use crate::{DomId, GrantRef, HostError, PAGE_SIZE};

use super::domain::Domain;
use super::window::Window;
use super::{ioctl, leak};

/// Pages of this process that can be offered to one domain.
pub type Pages = Arc<Window<Offered>>;

/// To whom pages can be offered, and which of them are.
#[derive(Debug)]
pub struct Offered {
    peer: DomId,
    /// By page.
    granted: Mutex<Vec<bool>>,
}

/// All that this process has granted.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<GrantRef, Entry>>);

#[derive(Debug)]
struct Entry {
    /// Where in the device's file the page is.
    index: u64,
    /// Where we have it, while its owner does.
    window: Weak<Window<Offered>>,
    page: usize,
}

impl Granting for Domain {
    type Memory = Pages;

    fn allocate(&self, pages: usize, peer: DomId) -> Result<Pages, HostError> {
        let granted = Mutex::new(vec![false; pages]);
        let window = Window::zeros(pages, Offered { peer, granted })
            .map_err(|errno| HostError::new(format!("allocate {pages} pages"), errno as i32))?;
        Ok(Arc::new(window))
    }

    fn grant(
        &self,
        memory: &Pages,
        first: usize,
        access: Access,
        grefs: &mut [GrantRef],
    ) -> Result<(), HostError> {
        let (gntalloc, count, peer) = (self.gntalloc()?, grefs.len(), memory.kept.peer);
        let refused = |why: String, errno: Errno| {
            let doing = format!("grant {count} pages from page {first} on to domain {peer}: {why}");
            HostError::new(doing, errno as i32)
        };
        let mut granted = memory.kept.granted.lock().unwrap_or_else(PoisonError::into_inner);
        let have = granted.len();
        let Some(states) = first.checked_add(count).and_then(|end| granted.get_mut(first..end))
        else {
            return Err(refused(format!("the memory has {have} pages"), Errno::EINVAL));
        };
        if let Some(at) = states.iter().position(|granted| *granted) {
            let page = first.saturating_add(at);
            return Err(refused(format!("page {page} is granted already"), Errno::EBUSY));
        }
        for (done, page) in (first..).take(count).enumerate() {
            match offer(&gntalloc, memory, page, access) {
                Ok((gref, index)) => {
                    let window = Arc::downgrade(memory);
                    self.granted().insert(gref, Entry { index, window, page });
                    if let Some(slot) = grefs.get_mut(done) {
                        *slot = gref;
                    }
                }
                Err(errno) => {
                    for gref in grefs.iter().take(done) {
                        self.granted().take_back(&gntalloc, *gref);
                    }
                    let why = match errno {
                        Errno::ENOSPC => {
                            "there are no more pages to grant (the limit is in \
                                          /sys/module/xen_gntalloc/parameters/limit)"
                        }
                        _ => "the kernel refuses",
                    };
                    return Err(refused(why.to_owned(), errno));
                }
            }
        }
        states.fill(true);
        Ok(())
    }

    fn revoke(&self, gref: GrantRef) -> Revoked {
        let Ok(gntalloc) = self.gntalloc() else { return Revoked::Done };
        let Some((window, page)) = self.granted().take_back(&gntalloc, gref) else {
            return Revoked::Done;
        };
        let mut granted = window.kept.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(granted) = granted.get_mut(page) {
            *granted = false;
        }
        Revoked::Done
    }
}

/// Puts a page that `memory`'s peer is granted in the place of page `page`.
fn offer(
    gntalloc: &OwnedFd,
    memory: &Pages,
    page: usize,
    access: Access,
) -> nix::Result<(GrantRef, u64)> {
    let file = gntalloc.as_fd();
    let writable = access == Access::ReadWrite;
    let (index, gref) = ioctl::allocate(file, memory.kept.peer, writable)?;
    if let Err(errno) = exchange(memory, page, Some((gntalloc, index))) {
        free(gntalloc, index);
        return Err(errno);
    }
    Ok((gref, index))
}

/// Puts another page where `page` is, with the same bytes in it.
fn exchange(
    memory: &Window<Offered>,
    page: usize,
    with: Option<(&OwnedFd, u64)>,
) -> nix::Result<()> {
    let beyond = |_: OutOfRange| Errno::EINVAL;
    let bytes = memory.page(page).map_err(beyond)?;
    memory.put(page, with.map(|(file, index)| (file.as_fd(), index)))?;
    // Either kind of page is born with zeros in it.
    if bytes.iter().any(|byte| *byte != 0) {
        memory.write_at(page.saturating_mul(PAGE_SIZE), &bytes).map_err(beyond)?;
    }
    Ok(())
}

fn free(gntalloc: &OwnedFd, index: u64) {
    if let Err(errno) = ioctl::free(gntalloc.as_fd(), index) {
        leak::leaked(1, "give a granted page back", errno);
    }
}

impl Table {
    fn insert(&self, gref: GrantRef, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(gref, entry);
    }

    /// Pages that are granted.
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends a grant; says of which page it was, where somebody still has that.
    fn take_back(&self, gntalloc: &OwnedFd, gref: GrantRef) -> Option<(Pages, usize)> {
        let entry = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&gref)?;
        let window = entry.window.upgrade();
        if let Some(window) = &window
            && let Err(errno) = exchange(window, entry.page, None)
        {
            // The peer may go on reaching a page that its owner believes to be private again.
            leak::leaked(1, "take a granted page back", errno);
        }
        free(gntalloc, entry.index);
        window.map(|window| (window, entry.page))
    }
}
