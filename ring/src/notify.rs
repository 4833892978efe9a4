//! What a role tells its caller to do next.
//!
//! The ring never sends an event and never sleeps: it answers whether to. Both answers are
//! `must_use`, for a notification forgotten or a recheck skipped is a ring that hangs now and then.

/// Whether the peer asked to be told of what was just published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a peer that asked to be notified sleeps until it is"]
pub enum Notify {
    /// Send it an event.
    Needed,
    /// It is awake, or has not been given anything new.
    No,
}

impl Notify {
    /// Whether to send an event.
    #[must_use]
    #[inline]
    pub const fn is_needed(self) -> bool {
        matches!(self, Self::Needed)
    }
}

/// Whether something came while the event was being armed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "work that came just before the event was armed is never announced"]
pub enum Recheck {
    /// There is work: take it, and do not sleep.
    More,
    /// There is none, and the peer will notify when there is: sleep.
    Quiet,
}

impl Recheck {
    /// Whether there is work to take.
    #[must_use]
    #[inline]
    pub const fn is_more(self) -> bool {
        matches!(self, Self::More)
    }
}
