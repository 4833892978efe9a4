//! Offering pages and taking the offers back, without asking anybody.

use std::sync::{Arc, PoisonError};

use nix::errno::Errno;

use crate::memory::{Access, Granting, Revoked};
use crate::{DomId, GrantRef, HostError};

use super::grant_table::Entry;
use super::pages::{OwnMemory, Pages};
use super::session::Domain;

impl Granting for Domain {
    type Memory = Pages;

    fn allocate(&self, pages: usize, peer: DomId) -> Result<Pages, HostError> {
        self.memory()?.allocate(pages, peer)
    }

    fn grant(
        &self,
        memory: &Pages,
        first: usize,
        access: Access,
        grefs: &mut [GrantRef],
    ) -> Result<(), HostError> {
        grant(self.memory()?, memory, first, access, grefs)
    }

    fn revoke(&self, gref: GrantRef) -> Revoked {
        self.memory().map_or(Revoked::Done, |memory| revoke(memory, gref))
    }
}

fn grant(
    own: &Arc<OwnMemory>,
    pages: &Pages,
    first: usize,
    access: Access,
    grefs: &mut [GrantRef],
) -> Result<(), HostError> {
    let count = grefs.len();
    let refused = |why: &str, errno: Errno| {
        let doing = format!("grant {count} pages from page {first} on to domain {}", pages.peer());
        HostError::new(format!("{doing}: {why}"), errno as i32)
    };
    if !pages.is_of(own) {
        return Err(refused("they are not this domain's", Errno::EINVAL));
    }
    let Some(frames) = pages.frames(first, count) else {
        let have = pages.count();
        return Err(refused(&format!("the memory has {have} pages"), Errno::EINVAL));
    };
    {
        let mut references = own.references.lock().unwrap_or_else(PoisonError::into_inner);
        if references.take(frames.clone(), grefs).is_none() {
            return Err(refused("the grant table is full", Errno::ENOSPC));
        }
    }
    for (gref, frame) in grefs.iter().zip(frames) {
        own.granted(frame);
        own.table.write(*gref, Some(Entry::offer(pages.peer(), frame, access)));
    }
    Ok(())
}

fn revoke(own: &OwnMemory, gref: GrantRef) -> Revoked {
    let mut references = own.references.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(frame) = references.frame(gref) else { return Revoked::Done };
    if own.marks.any(gref) {
        return Revoked::Busy;
    }
    let entry = own.table.read(gref);
    own.table.write(gref, None);
    // Whoever set a mark before it could see the entry gone is seen here, at the latest.
    if own.marks.any(gref) {
        own.table.write(gref, entry);
        return Revoked::Busy;
    }
    references.give(gref);
    drop(references);
    own.revoked(frame);
    Revoked::Done
}
