//! How long a guest is waited for that has no room for a packet.
//!
//! Such a guest holds its own packets up and nothing else: they wait for a bounded time, and where it goes on for
//! long, the guest counts as stalled and its link is taken down until it makes room again. Times and what they
//! mean as in Linux's xen-netback (v6.1). Units: nanoseconds.

/// A guest's want of room. `F` is what it has no room for.
#[derive(Debug)]
pub struct Patience<F> {
    /// What the first waiting packet needs, while there is too little.
    wanted: Option<F>,
    /// Since when.
    since: Option<u64>,
    stalled: bool,
}

impl<F> Default for Patience<F> {
    /// For a guest that has all that it needs.
    fn default() -> Self {
        Self { wanted: None, since: None, stalled: false }
    }
}

impl<F: Copy> Patience<F> {
    /// There is no room for `fit`.
    pub fn starve(&mut self, fit: F, now: u64) {
        self.wanted = Some(fit);
        self.since.get_or_insert(now);
    }

    /// There is room, or nothing waits for it any more.
    #[inline]
    pub fn rest(&mut self) {
        (self.wanted, self.since) = (None, None);
    }

    /// What there is no room for.
    pub const fn wanted(&self) -> Option<F> {
        self.wanted
    }

    /// Since when there is too little.
    pub const fn since(&self) -> Option<u64> {
        self.since
    }

    /// Whether that is so for longer than `patience`, where this is news.
    pub fn stall(&mut self, patience: u64, now: u64) -> Option<bool> {
        let stalled = self.since.is_some_and(|since| now.saturating_sub(since) >= patience);
        (std::mem::replace(&mut self.stalled, stalled) != stalled).then_some(stalled)
    }

    /// Whether the guest counts as stalled.
    pub const fn is_stalled(&self) -> bool {
        self.stalled
    }
}
