//! How long to look again before sleeping.
//!
//! Waking a sleeper costs tens of microseconds, so where the next message comes sooner than that
//! it is cheaper to look for it; where it does not, looking burns a core for nothing. The policy
//! learns which: a sleep that turned out short makes the time to look longer, one that turned out
//! long makes it shorter, down to none. A guest that is idle thus costs nothing, and one that does
//! something now and then is not looked for in vain.
//!
//! Pure arithmetic: the caller brings the time, in nanoseconds of any clock that does not go back.
//!
//! ```text
//! loop {
//!     if took_something { polling.busy(now) }
//!     else if polling.look_again(now) { continue }
//!     else if rearm is Quiet { sleep; polling.woken(now) }
//! }
//! ```

/// When to stop looking for work and sleep.
#[derive(Clone, Debug)]
pub struct Polling {
    /// The longest to look.
    most: u64,
    /// How long to look now.
    window: u64,
    /// Since when there has been nothing.
    idle_since: Option<u64>,
}

impl Polling {
    /// A good longest time to look: twice what waking another core takes.
    pub const DEFAULT_MOST: u64 = 100_000;

    /// The first step up from not looking at all, and the least time worth looking.
    const STEP: u64 = 10_000;

    /// Looks for at most `most` nanoseconds; 0 never looks again, `u64::MAX` never sleeps.
    #[must_use]
    pub const fn new(most: u64) -> Self {
        // Who never wants to sleep has nothing to learn.
        let window = if most == u64::MAX { most } else { 0 };
        Self { most, window, idle_since: None }
    }

    /// How long it would look now, in nanoseconds.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// There was work at `now`. Where it came late in the time to look, that is made longer: the
    /// next gap may be a little longer too, and to sleep through it would cost more.
    #[inline]
    pub fn busy(&mut self, now: u64) {
        let Some(since) = self.idle_since.take() else { return };
        let room = now.saturating_sub(since).saturating_mul(2).min(self.most);
        self.window = self.window.max(room);
    }

    /// There was no work at `now`: whether to look again rather than to sleep.
    #[inline]
    #[must_use]
    pub fn look_again(&mut self, now: u64) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        now.saturating_sub(since) < self.window
    }

    /// A notification ended the sleep at `now`.
    pub fn woken(&mut self, now: u64) {
        let Some(since) = self.idle_since.take() else { return };
        if self.most == u64::MAX {
            return;
        }
        // Measured from when the work ran out: that is how long looking would have taken.
        self.window = if now.saturating_sub(since) <= self.most {
            self.window.saturating_mul(2).max(Self::STEP).min(self.most)
        } else {
            match self.window / 4 {
                small if small < Self::STEP => 0,
                shorter => shorter,
            }
        };
    }
}

impl Default for Polling {
    fn default() -> Self {
        Self::new(Self::DEFAULT_MOST)
    }
}

#[cfg(test)]
mod tests;
