//! How long a queue looks for work before it sleeps.

use core::time::Duration;

use crate::Polling;

/// How a queue waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waiting {
    /// Sleeps as soon as there is nothing to do.
    Sleep,
    /// Looks for as long as that has paid lately, at most so long, and then sleeps. Costs nothing
    /// while the peer is idle.
    Adaptive {
        /// The longest to look.
        most: Duration,
    },
    /// Never sleeps. Takes a whole processor, for measuring.
    Spin,
}

impl Waiting {
    /// Empty looks at the ring between two offers of the processor to somebody else. On a machine
    /// with few processors the peer may be waiting for this very one.
    pub const LOOKS_PER_YIELD: u32 = 64;

    /// The policy that learns how long to look.
    #[must_use]
    pub fn polling(self) -> Polling {
        Polling::new(match self {
            Self::Sleep => 0,
            Self::Adaptive { most } => {
                u64::try_from(most.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX - 1)
            }
            Self::Spin => u64::MAX,
        })
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self::Adaptive { most: Duration::from_nanos(Polling::DEFAULT_MOST) }
    }
}
