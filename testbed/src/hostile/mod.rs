//! Frontends that lie.
//!
//! Each [`Case`] is one small way in which a guest can be hostile to the backend that serves it: what
//! it does to its ring ([`indexes`], [`lengths`]), to its grants ([`grants`]), while requests are
//! looked at or under way ([`races`]), to its keys in the store ([`keys`]), and by coming, going and
//! dying ([`lives`]). A case plays one round: it joins as a new domain, does its mischief, checks what
//! a frontend can see of how it was taken, and goes. What the backend should have counted is named
//! beside it. [`honest`] is the guest that all of them would like to harm. [`siege`] plays them.
//!
//! Trust: none; this is the attacker. Nothing here goes around the hypervisor: what it does, any
//! guest can do.

pub mod disk;
pub mod grants;
pub mod guest;
pub mod honest;
pub mod indexes;
pub mod keys;
pub mod lengths;
pub mod lives;
pub mod net;
pub mod races;
pub mod siege;

use anyhow::Result;

pub use disk::Disk;
pub use guest::{Guest, Stage};

/// One way of being hostile.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What the backend has counted afterwards: reasons for which requests are refused, faults of a
    /// frontend, or counters.
    pub counted: &'static [&'static str],
    /// One round of it.
    pub play: fn(&Stage) -> Result<()>,
}

/// All of them that are about disks; those about networks are [`net::all`].
pub fn all() -> impl Iterator<Item = &'static Case> {
    [indexes::CASES, grants::CASES, lengths::CASES, races::CASES, keys::CASES, lives::CASES]
        .into_iter()
        .flatten()
}
