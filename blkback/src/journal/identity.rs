//! Which ring a journal belongs to, and why one is refused.

use std::ops::Range;

use hypervisor::{DomId, EventPort, GrantRef};

use super::{CHECK, Cells, IDENTITY, MAGIC, MARKED, VERSION, record, words};
use crate::connect::Layout;

/// Pages of the largest ring.
const PAGES: usize = 16;

/// A connection's queue, by all that its frontend wrote of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device: its directory in the store.
    pub device: String,
    /// The frontend's domain.
    pub peer: DomId,
    /// The queue's number.
    pub queue: u16,
    /// How requests are laid out.
    pub layout: Layout,
    /// Slots on its ring.
    pub slots: u32,
    /// The ring's pages.
    pub ring: Vec<GrantRef>,
    /// The frontend's end of the channel.
    pub port: EventPort,
}

/// Its parts among its words.
const PARTS: [(&str, Range<usize>); 7] = [
    ("domain", 0..1),
    ("queue", 1..2),
    ("layout", 2..3),
    ("slots", 3..4),
    ("event channel", 4..5),
    ("ring", 5..14),
    ("device", 14..WORDS),
];
/// All of its words.
const WORDS: usize = CHECK - IDENTITY;

/// Why a journal is not gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It is no journal, or not one of this version.
    #[error("it begins with {found:#018x} {version:#x}, not with {MAGIC:#018x} {VERSION:#x}")]
    Version {
        /// What is there instead of the magic number.
        found: u64,
        /// What is there instead of the version.
        version: u64,
    },
    /// It has not as many words as its ring would need.
    #[error("it has {have} words, and a ring of {slots} slots needs {wanted}")]
    Size {
        /// As many as there are.
        have: usize,
        /// As many as there should be.
        wanted: usize,
        /// For so many slots.
        slots: u32,
    },
    /// Its header is damaged.
    #[error("its header is damaged")]
    Header,
    /// It was kept for something else.
    #[error("it was kept for another {part}")]
    Other {
        /// What is another.
        part: &'static str,
    },
    /// The ring is another than that for which it was kept.
    #[error("the ring carries mark {found:#x}, and its own is {mark:#x}")]
    Mark {
        /// The ring's.
        found: u64,
        /// The journal's.
        mark: u64,
    },
    /// The ring's indexes cannot be those of the requests in it.
    #[error(
        "{taken} requests were taken and {owed} are owed, on a ring with {published} answered, {produced} made \
         and {slots} slots"
    )]
    Indexes {
        /// Requests taken, as a ring counts them.
        taken: u32,
        /// Those among them that were not answered.
        owed: usize,
        /// Responses published.
        published: u32,
        /// Requests made.
        produced: u32,
        /// Slots on the ring.
        slots: u32,
    },
    /// An entry is damaged.
    #[error("entry {entry} is damaged")]
    Torn {
        /// Its number.
        entry: u32,
    },
    /// An entry has an index that no request has had.
    #[error("entry {entry} has index {index} of {taken}")]
    Ahead {
        /// Its number.
        entry: u32,
        /// Of its request, or of the answer.
        index: u64,
        /// Requests taken.
        taken: u64,
    },
}

impl Identity {
    /// Writes the header of a journal of this ring.
    pub(super) fn write<C: Cells>(&self, cells: &C, mark: u64) {
        let own = self.words();
        cells.store(0, MAGIC);
        cells.store(1, VERSION);
        cells.store(MARKED, mark);
        for (at, word) in (IDENTITY..).zip(own) {
            cells.store(at, word);
        }
        cells.store(CHECK, record::sum(mark, &own));
    }

    /// Whether `cells` is a journal of this ring, and with which mark.
    pub(super) fn read<C: Cells>(&self, cells: &C) -> Result<u64, Refused> {
        let (found, version) = (cells.load(0), cells.load(1));
        if (found, version) != (MAGIC, VERSION) {
            return Err(Refused::Version { found, version });
        }
        let mark = cells.load(MARKED);
        let there: [u64; WORDS] = std::array::from_fn(|n| cells.load(IDENTITY.saturating_add(n)));
        if cells.load(CHECK) != record::sum(mark, &there) {
            return Err(Refused::Header);
        }
        let own = self.words();
        for (part, range) in PARTS {
            if own.get(range.clone()) != there.get(range) {
                return Err(Refused::Other { part });
            }
        }
        let (have, wanted) = (cells.count(), words(self.slots));
        if have != wanted {
            return Err(Refused::Size { have, wanted, slots: self.slots });
        }
        Ok(mark)
    }

    fn words(&self) -> [u64; WORDS] {
        let layout = match self.layout {
            Layout::X86_32 => 1,
            Layout::X86_64 => 2,
            Layout::Native => 3,
        };
        let mut words = [0; WORDS];
        let single = [
            u64::from(self.peer.get()),
            u64::from(self.queue),
            layout,
            u64::from(self.slots),
            u64::from(self.port.0),
            self.ring.len() as u64,
        ];
        let (front, device) = words.split_at_mut(14);
        for (word, value) in front.iter_mut().zip(single) {
            *word = value;
        }
        let pairs = self.ring.chunks(2).take(PAGES / 2);
        for (word, pair) in front.iter_mut().skip(6).zip(pairs) {
            let half = |n: usize| pair.get(n).map_or(0, |gref| u64::from(gref.0));
            *word = half(0) | half(1) << 32;
        }
        // All of a name counts, however long it is.
        let places = device.len().max(1);
        for (n, chunk) in self.device.as_bytes().chunks(8).enumerate() {
            let mut bytes = [0; 8];
            for (to, from) in bytes.iter_mut().zip(chunk) {
                *to = *from;
            }
            if let Some(word) = device.get_mut(n.checked_rem(places).unwrap_or(0)) {
                *word = word.rotate_left(7) ^ u64::from_le_bytes(bytes);
            }
        }
        words
    }
}
