//! Having our pages stay mapped at the backend, which then copies without asking the hypervisor.
//!
//! The pages are those through which packets are bounced, granted for as long as the connection lasts
//! whether or not they stay mapped. For each queue the backend is asked how many it keeps, and given as
//! many in lists of up to a page. What it does not keep it copies as ever, so refusing is its right.
//!
//! Source: "Static Grants", "Control messages" in io/netif.h (RELEASE-4.17).

use alloc::vec::Vec;

use hypervisor::GrantRef;
use ring::wire::netif::control::Gref;

/// What one connection has of that kind, and how far the backend was told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Staging {
    /// The pages of each queue that is not done, the last one first.
    left: Vec<(u32, Vec<GrantRef>)>,
    /// How many more the backend keeps of the queue that comes next; not yet known without.
    room: Option<usize>,
    /// Entries of the list that it was given last.
    given: usize,
    kept: usize,
}

/// What to ask next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// How many it keeps of a queue.
    Room(u32),
    /// To keep these of a queue, a list as it lies in memory.
    Keep(u32, Vec<u8>),
}

impl Staging {
    /// Of queues with these pages, in the order of their numbers.
    pub(crate) fn new(queues: impl Iterator<Item = Vec<GrantRef>>) -> Self {
        let mut left: Vec<_> = (0..).zip(queues).collect();
        left.reverse();
        Self { left, ..Self::default() }
    }

    /// The next question; `None` where there is none.
    pub(crate) fn next(&mut self) -> Option<Ask> {
        loop {
            let (queue, pages) = self.left.last()?;
            let queue = *queue;
            let Some(room) = self.room else { return Some(Ask::Room(queue)) };
            let most = room.min(Gref::PER_PAGE).min(pages.len());
            let list = pages.get(pages.len().saturating_sub(most)..).unwrap_or_default();
            if list.is_empty() {
                self.left.pop();
                self.room = None;
                continue;
            }
            self.given = list.len();
            let entry = |gref: &GrantRef| Gref { gref: *gref, flags: 0, status: 0 }.encode();
            return Some(Ask::Keep(queue, list.iter().flat_map(entry).collect()));
        }
    }

    /// The last question was answered, with `data`.
    pub(crate) fn answered(&mut self, data: u32) {
        match self.room {
            None => self.room = Some(data as usize),
            Some(room) => {
                self.room = Some(room.saturating_sub(self.given));
                self.kept = self.kept.saturating_add(self.given);
                if let Some((_, pages)) = self.left.last_mut() {
                    pages.truncate(pages.len().saturating_sub(self.given));
                }
            }
        }
    }

    /// The backend will not: nothing more is asked.
    pub(crate) fn refused(&mut self) {
        self.left.clear();
    }

    /// Pages that stay mapped.
    pub(crate) const fn kept(&self) -> usize {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(counts: &[u32], room: u32) -> (Vec<(u32, usize)>, usize) {
        let pages = |count: &u32| (0..*count).map(GrantRef).collect();
        let mut staging = Staging::new(counts.iter().map(pages));
        let mut asked = Vec::new();
        while let Some(ask) = staging.next() {
            match ask {
                Ask::Room(queue) => {
                    asked.push((queue, 0));
                    staging.answered(room);
                }
                Ask::Keep(queue, list) => {
                    asked.push((queue, list.len() / Gref::SIZE));
                    staging.answered(0);
                }
            }
            assert!(asked.len() < 50, "{asked:?}");
        }
        (asked, staging.kept())
    }

    #[test]
    fn as_many_are_kept_as_there_is_room_for() {
        let whole = [(0, 0), (0, 512), (0, 18), (1, 0), (1, 3)].to_vec();
        assert_eq!(told(&[530, 3], 1000), (whole, 533));
        let some = [(0, 0), (0, 512), (0, 8), (1, 0), (1, 3)].to_vec();
        assert_eq!(told(&[530, 3], 520), (some, 523));
        assert_eq!(told(&[530, 3], 0), ([(0, 0), (1, 0)].to_vec(), 0));
        assert_eq!(told(&[0], 9), ([(0, 0)].to_vec(), 0));
    }

    #[test]
    fn who_refuses_is_not_asked_again() {
        let mut staging = Staging::new([alloc::vec![GrantRef(1)]].into_iter());
        assert_eq!(staging.next(), Some(Ask::Room(0)));
        staging.refused();
        assert_eq!((staging.next(), staging.kept()), (None, 0));
    }
}
