//! How long nobody served, over many kills or upgrades of a backend.

use std::fmt;

/// Pauses, in milliseconds, in the order in which they were.
#[derive(Clone, Debug, Default)]
pub struct Pauses(pub Vec<u64>);

impl FromIterator<u64> for Pauses {
    fn from_iter<I: IntoIterator<Item = u64>>(pauses: I) -> Self {
        Self(pauses.into_iter().collect())
    }
}

impl Pauses {
    /// The pause that so many percent of all are no longer than: by nearest rank.
    fn at(sorted: &[u64], percent: usize) -> u64 {
        let rank = sorted.len().saturating_mul(percent).div_ceil(100).max(1);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |percent| Self::at(&sorted, percent);
        write!(
            f,
            "{} pauses; nobody served for {} ms (median), {} ms (90 %), {} ms (99 %), {} ms (longest); each: {:?}",
            sorted.len(),
            at(50),
            at(90),
            at(99),
            at(100),
            self.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Pauses;

    #[test]
    fn a_distribution_is_by_nearest_rank() {
        let shown = Pauses((1..=100).rev().collect()).to_string();
        let wanted = "50 ms (median), 90 ms (90 %), 99 ms (99 %), 100 ms (longest)";
        assert!(shown.starts_with("100 pauses") && shown.contains(wanted), "{shown}");
        let shown = Pauses(vec![3, 1]).to_string();
        assert!(
            shown.contains("1 ms (median), 3 ms (90 %)") && shown.ends_with("[3, 1]"),
            "{shown}"
        );
        assert!(Pauses::default().to_string().starts_with("0 pauses"));
    }
}
