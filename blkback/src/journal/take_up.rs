//! A journal: begun with a connection, written along the path, and read after a kill.

use ring::RingIndex;
use ring::layout::{MARK as RING_MARK, Word};
use ring::shared::Words;
use ring::wire::blkif::Request;

use super::{ANSWER, Cells, HEAD, Identity, LOST, REQUEST, Refused, TAKEN, place, record};

/// One queue's journal.
#[derive(Debug)]
pub struct Journal<C> {
    cells: C,
    /// Requests taken, of which those up to `answered` have an answer written.
    taken: u64,
    answered: u64,
    /// Entries that may be used.
    free: Vec<u32>,
    /// Those whose answers are written and not published.
    unpublished: Vec<u32>,
}

/// What a journal and its ring say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Requests taken.
    pub taken: RingIndex,
    /// Responses published.
    pub published: RingIndex,
    /// What was taken and is owed an answer, in the order in which it was taken, by entry.
    pub requests: Vec<(Request, u32)>,
    /// Why flushes cannot succeed any more, a positive `errno`.
    pub lost: Option<i32>,
    all_taken: u64,
    all_published: u64,
    /// Entries of requests that were not counted as taken.
    forgotten: Vec<u32>,
}

impl Owed {
    /// Nothing, on a ring whose requests up to `at` are answered.
    fn nothing(at: RingIndex) -> Self {
        Self {
            taken: at,
            published: at,
            requests: Vec::new(),
            lost: None,
            all_taken: at.0.into(),
            all_published: at.0.into(),
            forgotten: Vec::new(),
        }
    }
}

impl<C: Cells> Journal<C> {
    /// Begins one in `cells`, all zeroes, for a `ring` that is `identity`'s and all of whose answered requests
    /// were answered before. Nobody may find it there before it is [marked](mark).
    pub fn begin<R: Words>(cells: C, identity: &Identity, ring: &R, mark: u64) -> (Self, Owed) {
        let owed = Owed::nothing(RingIndex(ring.load(Word::ResponseProducer)));
        identity.write(&cells, mark);
        cells.store(TAKEN, owed.all_taken);
        let free = (0..identity.slots).rev().collect();
        let (taken, answered) = (owed.all_taken, owed.all_published);
        (
            Self {
                cells,
                taken,
                answered,
                free,
                unpublished: Vec::with_capacity(identity.slots as usize),
            },
            owed,
        )
    }

    /// What the journal in `cells` and its `ring` say is owed. Changes neither.
    ///
    /// # Errors
    ///
    /// It is not this ring's, or the two do not fit each other.
    pub fn look<R: Words>(cells: &C, identity: &Identity, ring: &R) -> Result<Owed, Refused> {
        let mark = identity.read(cells)?;
        let mut found = [0; 8];
        ring.copy_out(RING_MARK, &mut found);
        let found = u64::from_le_bytes(found);
        if found != mark {
            return Err(Refused::Mark { found, mark });
        }
        let taken = cells.load(TAKEN);
        let last = RingIndex(low(taken));
        let published = RingIndex(ring.load(Word::ResponseProducer));
        let produced = RingIndex(ring.load(Word::RequestProducer));
        let owing = last.since(published);
        let mut owed = Owed {
            taken: last,
            published,
            requests: Vec::new(),
            lost: i32::try_from(cells.load(LOST)).ok().filter(|errno| *errno > 0),
            all_taken: taken,
            all_published: taken.wrapping_sub(owing.into()),
            forgotten: Vec::new(),
        };
        let mut found = Vec::new();
        if owing <= identity.slots {
            for entry in 0..identity.slots {
                if let Some((index, request)) = owed.entry(cells, entry)? {
                    found.push((index, request, entry));
                }
            }
        }
        let room = identity.slots.saturating_sub(owing);
        if found.len() as u64 != u64::from(owing) || produced.since(last) > room {
            return Err(Refused::Indexes {
                taken: last.0,
                owed: found.len(),
                published: published.0,
                produced: produced.0,
                slots: identity.slots,
            });
        }
        found.sort_by_key(|(index, ..)| *index);
        owed.requests = found.into_iter().map(|(_, request, entry)| (request, entry)).collect();
        Ok(owed)
    }

    /// Goes on with a journal of which [`look`](Self::look) said what is `owed`. May be cut short by a
    /// kill anywhere, and is then done again by the next process.
    pub fn resume(cells: C, identity: &Identity, owed: &Owed) -> Self {
        // Those first that were not counted: the next request has their index.
        for entry in &owed.forgotten {
            cells.store(place(*entry).saturating_add(HEAD), 0);
        }
        // An answer that was written and not published is written anew, in another place perhaps; the
        // old place is somebody else's before long, and would make this entry look as if it were over.
        for (_, entry) in &owed.requests {
            let answer = place(*entry).saturating_add(ANSWER);
            if cells.load(answer) != 0 {
                cells.store(answer, 0);
            }
        }
        let used = |entry: &u32| owed.requests.iter().any(|(_, other)| other == entry);
        let free = (0..identity.slots).rev().filter(|entry| !used(entry)).collect();
        let unpublished = Vec::with_capacity(identity.slots as usize);
        Self { cells, taken: owed.all_taken, answered: owed.all_published, free, unpublished }
    }

    /// Keeps a request that was just taken. Nothing where there is no entry left, which cannot be: there are as many
    /// as the ring has slots.
    #[inline]
    pub(super) fn take(&mut self, request: &Request) -> Option<u32> {
        let entry = self.free.pop()?;
        let at = place(entry);
        let from = at.saturating_add(REQUEST);
        let cells = &self.cells;
        let head = record::write(request, self.taken, |n, word| {
            cells.store(from.saturating_add(n), word);
        });
        self.cells.store(at.saturating_add(HEAD), head);
        self.cells.store(at.saturating_add(ANSWER), 0);
        self.taken = self.taken.wrapping_add(1);
        self.cells.store(TAKEN, self.taken);
        Some(entry)
    }

    /// Notes that the answer to `entry`'s request is written.
    #[inline]
    pub(super) fn answered(&mut self, entry: u32) {
        self.answered = self.answered.wrapping_add(1);
        self.cells.store(place(entry).saturating_add(ANSWER), self.answered);
        self.unpublished.push(entry);
    }

    /// Every answer that was noted is published.
    #[inline]
    pub(super) fn published(&mut self) {
        self.free.append(&mut self.unpublished);
    }

    /// Notes that flushes cannot succeed any more, because of `errno`.
    pub fn lose(&self, errno: i32) {
        self.cells.store(LOST, u64::try_from(errno).unwrap_or(0));
    }
}

/// Makes `ring` the one that a journal with `mark` is kept for.
pub fn mark<R: Words>(ring: &R, mark: u64) {
    ring.copy_in(RING_MARK, &mark.to_le_bytes());
}

impl Owed {
    /// The request in `entry` and its index, where it is owed an answer. Notes those that are to be forgotten.
    fn entry<C: Cells>(
        &mut self,
        cells: &C,
        entry: u32,
    ) -> Result<Option<(u64, Request)>, Refused> {
        let at = place(entry);
        let head = cells.load(at);
        let answer = cells.load(at.saturating_add(ANSWER));
        // One more than an index, so that this is `answer - 1 < published`.
        if head == 0 || (answer != 0 && answer <= self.all_published) {
            return Ok(None);
        }
        let mut words = [0; record::LONGEST];
        let [first, rest @ ..] = &mut words;
        let from = at.saturating_add(REQUEST);
        *first = cells.load(from);
        let used = record::used(*first);
        for (n, word) in rest.iter_mut().enumerate().take(used.saturating_sub(1)) {
            *word = cells.load(from.saturating_add(n).saturating_add(1));
        }
        let (request, high) = record::read(&words);
        let index = high | u64::from(low(head));
        if words.get(..used).is_none_or(|words| record::head(index, words) != head) {
            return Err(Refused::Torn { entry });
        }
        let taken = self.all_taken;
        if index == taken && answer == 0 {
            self.forgotten.push(entry);
            return Ok(None);
        }
        for index in [index, answer.saturating_sub(1)] {
            if index >= taken {
                return Err(Refused::Ahead { entry, index, taken });
            }
        }
        Ok(Some((index, request)))
    }
}

/// An index as the ring has it.
fn low(index: u64) -> u32 {
    let [a, b, c, d, ..] = index.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
