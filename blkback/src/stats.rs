//! What a queue counts.
//!
//! One thread counts and any thread reads: a count is a relaxed load and a store, never a locked
//! operation. A snapshot is taken while counting goes on, so its numbers may be a few
//! requests apart from each other. Units: requests, bytes, nanoseconds.

use ring::Counter;
use serde::{Deserialize, Serialize};

use crate::validate::{Action, Refusal};

/// Powers of two that latencies are sorted into: the last is for everything from 2^31 ns up.
pub const BUCKETS: usize = 32;

/// One queue's counters. Aligned so that two queues never share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats {
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    pub(crate) flushes: Counter,
    pub(crate) barriers: Counter,
    pub(crate) discards: Counter,
    pub(crate) zeroes: Counter,
    pub(crate) bytes_read: Counter,
    pub(crate) bytes_written: Counter,
    pub(crate) bytes_discarded: Counter,
    pub(crate) bytes_zeroed: Counter,
    pub(crate) refused: [Counter; Refusal::ALL.len()],
    pub(crate) medium_errors: Counter,
    pub(crate) held: Counter,
    pub(crate) reissued: Counter,
    pub(crate) stalled: Counter,
    pub(crate) notified: Counter,
    pub(crate) not_notified: Counter,
    pub(crate) events: Counter,
    pub(crate) empty_events: Counter,
    pub(crate) storms: Counter,
    pub(crate) turns: Counter,
    pub(crate) polls_paid: Counter,
    pub(crate) sleeps: Counter,
    pub(crate) in_flight: Counter,
    pub(crate) mapped_pages: Counter,
    pub(crate) taken: Counter,
    pub(crate) answered: Counter,
    latency: [Counter; BUCKETS],
}

/// A queue's counters at one moment. Counts are since the queue began, except where they say "now".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Snapshot {
    /// Reads answered with success.
    pub reads: u64,
    /// Writes answered with success.
    pub writes: u64,
    /// Flushes answered with success.
    pub flushes: u64,
    /// Barriers answered with success.
    pub barriers: u64,
    /// Discards answered with success.
    pub discards: u64,
    /// Requests to write zeroes answered with success.
    pub zeroes: u64,
    /// Bytes that those reads gave.
    pub bytes_read: u64,
    /// Bytes that those writes, flushes and barriers carried.
    pub bytes_written: u64,
    /// Bytes that those discards named.
    pub bytes_discarded: u64,
    /// Bytes that those requests for zeroes named.
    pub bytes_zeroed: u64,
    /// Requests answered with an error before they reached the medium, by reason; none that is zero.
    pub refused: std::collections::BTreeMap<String, u64>,
    /// Requests answered with an error of the medium's.
    pub medium_errors: u64,
    /// Requests that had to wait: for a limit, a barrier, or memory.
    pub held: u64,
    /// Requests that a process before this one took and did not answer, begun anew.
    pub reissued: u64,
    /// How often a request that the medium refused was kept to be tried again.
    #[serde(default)]
    pub stalled: u64,
    /// Notifications sent to the guest.
    pub notified: u64,
    /// Publications that the guest did not want to be notified of.
    pub not_notified: u64,
    /// Events that came from the guest.
    pub events: u64,
    /// Those among them that brought nothing.
    pub empty_events: u64,
    /// Times that events which brought nothing made us stop listening for a while.
    pub storms: u64,
    /// Rounds of the queue's loop that found something to do.
    pub turns: u64,
    /// Those among them for which nobody had to wake us.
    pub polls_paid: u64,
    /// Times that the queue slept.
    pub sleeps: u64,
    /// Requests taken and not answered, now.
    pub in_flight: u64,
    /// Pages that stay mapped between requests, now.
    pub mapped_pages: u64,
    /// The transport's count of requests taken, now.
    pub taken: u64,
    /// The transport's count of answers published, now.
    pub answered: u64,
    /// Requests by how long they took from being taken to being answered: entry n counts those
    /// between 2^n and 2^(n+1) nanoseconds.
    pub latency: Vec<u64>,
}

impl Stats {
    /// Counts a request that was done, with `len` bytes of data, in `ns` nanoseconds.
    #[inline]
    pub(crate) fn done(&self, action: Action, len: u64, ns: u64) {
        let (requests, bytes) = match action {
            Action::Read => (&self.reads, &self.bytes_read),
            Action::Write => (&self.writes, &self.bytes_written),
            Action::Flush => (&self.flushes, &self.bytes_written),
            Action::Barrier => (&self.barriers, &self.bytes_written),
            Action::Discard { .. } => (&self.discards, &self.bytes_discarded),
            Action::Zero { .. } => (&self.zeroes, &self.bytes_zeroed),
        };
        requests.add(1);
        bytes.add(len);
        if let Some(bucket) = self.latency.get(bucket(ns)) {
            bucket.add(1);
        }
    }

    /// Counts a request that was not done because of `refusal`.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        if let Some(at) = Refusal::ALL.iter().position(|&each| each == refusal)
            && let Some(counter) = self.refused.get(at)
        {
            counter.add(1);
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let refused = Refusal::ALL.iter().zip(&self.refused);
        Snapshot {
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: self.flushes.get(),
            barriers: self.barriers.get(),
            discards: self.discards.get(),
            zeroes: self.zeroes.get(),
            bytes_read: self.bytes_read.get(),
            bytes_written: self.bytes_written.get(),
            bytes_discarded: self.bytes_discarded.get(),
            bytes_zeroed: self.bytes_zeroed.get(),
            refused: refused
                .map(|(refusal, counter)| (refusal.name().to_owned(), counter.get()))
                .filter(|(_, count)| *count > 0)
                .collect(),
            medium_errors: self.medium_errors.get(),
            held: self.held.get(),
            reissued: self.reissued.get(),
            stalled: self.stalled.get(),
            notified: self.notified.get(),
            not_notified: self.not_notified.get(),
            events: self.events.get(),
            empty_events: self.empty_events.get(),
            storms: self.storms.get(),
            turns: self.turns.get(),
            polls_paid: self.polls_paid.get(),
            sleeps: self.sleeps.get(),
            in_flight: self.in_flight.get(),
            mapped_pages: self.mapped_pages.get(),
            taken: self.taken.get(),
            answered: self.answered.get(),
            latency: self.latency.iter().map(Counter::get).collect(),
        }
    }
}

impl Snapshot {
    /// Adds another queue's numbers, or an earlier connection's, to these. The two positions on a
    /// ring mean nothing in a sum and become 0.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.reads, other.reads),
            (&mut self.writes, other.writes),
            (&mut self.flushes, other.flushes),
            (&mut self.barriers, other.barriers),
            (&mut self.discards, other.discards),
            (&mut self.zeroes, other.zeroes),
            (&mut self.bytes_read, other.bytes_read),
            (&mut self.bytes_written, other.bytes_written),
            (&mut self.bytes_discarded, other.bytes_discarded),
            (&mut self.bytes_zeroed, other.bytes_zeroed),
            (&mut self.medium_errors, other.medium_errors),
            (&mut self.held, other.held),
            (&mut self.reissued, other.reissued),
            (&mut self.stalled, other.stalled),
            (&mut self.notified, other.notified),
            (&mut self.not_notified, other.not_notified),
            (&mut self.events, other.events),
            (&mut self.empty_events, other.empty_events),
            (&mut self.storms, other.storms),
            (&mut self.turns, other.turns),
            (&mut self.polls_paid, other.polls_paid),
            (&mut self.sleeps, other.sleeps),
            (&mut self.in_flight, other.in_flight),
            (&mut self.mapped_pages, other.mapped_pages),
        ] {
            *mine = mine.saturating_add(theirs);
        }
        (self.taken, self.answered) = (0, 0);
        for (name, count) in &other.refused {
            let mine = self.refused.entry(name.clone()).or_default();
            *mine = mine.saturating_add(*count);
        }
        self.latency.resize(self.latency.len().max(other.latency.len()), 0);
        for (mine, theirs) in self.latency.iter_mut().zip(&other.latency) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// Requests answered with success.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let moved = [self.reads, self.writes, self.flushes, self.barriers];
        moved.iter().chain(&[self.discards, self.zeroes]).sum()
    }

    /// Requests answered with an error.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.refused.values().sum::<u64>().saturating_add(self.medium_errors)
    }

    /// The latency, in nanoseconds, that `percent` of the requests since `earlier` stayed
    /// under, to the next power of two; `None` where there were none.
    #[must_use]
    pub fn latency_ns(&self, earlier: &Self, percent: u8) -> Option<u64> {
        let counts = self.latency.iter().enumerate().map(|(at, count)| {
            count.saturating_sub(earlier.latency.get(at).copied().unwrap_or_default())
        });
        let all: u64 = counts.clone().sum();
        let rank = all.checked_mul(u64::from(percent))?.div_ceil(100).max(1);
        let mut seen = 0u64;
        for (at, count) in counts.enumerate() {
            seen = seen.saturating_add(count);
            if seen >= rank {
                return 1u64.checked_shl(u32::try_from(at).ok()?.saturating_add(1));
            }
        }
        None
    }
}

/// The power of two below `ns`.
#[inline]
fn bucket(ns: u64) -> usize {
    let power = ns.max(1).ilog2();
    usize::try_from(power).unwrap_or(BUCKETS).min(BUCKETS.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_powers_of_two() {
        let places = [0, 1, 2, 3, 4, 1023, 1024, 1 << 31, u64::MAX].map(bucket);
        assert_eq!(places, [0, 0, 1, 1, 2, 9, 10, 31, 31]);
        let stats = Stats::default();
        for ns in [100, 100, 100, 5000] {
            stats.done(Action::Read, 4096, ns);
        }
        let snapshot = stats.snapshot();
        assert_eq!((snapshot.requests(), snapshot.bytes_read), (4, 4 * 4096));
        let none = Snapshot::default();
        assert_eq!(snapshot.latency_ns(&none, 50), Some(128));
        assert_eq!(snapshot.latency_ns(&none, 99), Some(8192));
        assert_eq!(snapshot.latency_ns(&snapshot, 50), None);
    }

    #[test]
    fn sums_add_every_count() {
        let stats = Stats::default();
        stats.done(Action::Write, 512, 9);
        stats.refuse(Refusal::PastEnd);
        stats.medium_errors.add(2);
        let one = stats.snapshot();
        let mut sum = Snapshot::default();
        sum.merge(&one);
        sum.merge(&one);
        assert_eq!((sum.writes, sum.bytes_written, sum.errors()), (2, 1024, 6));
        assert_eq!(sum.refused.get("past_end"), Some(&2));
        assert_eq!(sum.latency.iter().sum::<u64>(), 2);
    }
}
