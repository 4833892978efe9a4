//! Pages that the backend was done with, but has not let go of.
//!
//! Taking a grant back can find the page still mapped (advisory 396): whoever has it mapped could
//! still read and change it. Such a page is never reused or freed. It waits here, and
//! [`retry`](Quarantine::retry) asks again later.

use alloc::vec::Vec;

use crate::GrantRef;
use crate::memory::{Granting, Revoked};

/// Pages waiting for the backend to let go of them.
pub struct Quarantine<G: Granting> {
    held: Vec<Held<G::Memory>>,
}

struct Held<M> {
    /// Kept for its drop only: it frees the pages.
    _memory: M,
    grefs: Vec<GrantRef>,
}

impl<G: Granting> Default for Quarantine<G> {
    fn default() -> Self {
        Self { held: Vec::new() }
    }
}

impl<G: Granting> Quarantine<G> {
    /// Takes back `grefs`, all of them grants of pages of `memory`, and frees the memory; or keeps
    /// it aside for as long as a single page of it is busy.
    pub fn retire(&mut self, granting: &G, memory: G::Memory, mut grefs: Vec<GrantRef>) {
        grefs.retain(|gref| granting.revoke(*gref) == Revoked::Busy);
        if !grefs.is_empty() {
            self.held.push(Held { _memory: memory, grefs });
        }
    }

    /// Asks again for every busy page; says how many still are.
    pub fn retry(&mut self, granting: &G) -> usize {
        self.held.retain_mut(|held| {
            held.grefs.retain(|gref| granting.revoke(*gref) == Revoked::Busy);
            !held.grefs.is_empty()
        });
        self.pages()
    }

    /// How many pages are busy.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.held.iter().map(|held| held.grefs.len()).sum()
    }
}
