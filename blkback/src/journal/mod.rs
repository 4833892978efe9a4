//! What was taken off a ring and not answered, kept where it outlives this process.
//!
//! A backend answers out of order, and a response is written over some request's slot: once it is
//! killed, its ring alone does not say which requests were taken and are owed an answer. The journal does:
//! a file for each queue in a run-time folder (in memory, on tmpfs), mapped and written with plain stores.
//! They cost no call, and whatever was stored before a kill is there after it. The next process
//! finds the rings as they are, answers what is owed, and goes on; the guest sees a pause.
//!
//! ```text
//!   words 0..34    magic, layout, mark, who and which ring it is ([`Identity`]), check
//!   word  64       taken: requests taken so far, T
//!   word  72       why flushes cannot succeed any more, an errno
//!   words 512..    entries of 16 words, as many as the ring has slots
//!                    0     head: check (32 bits), the low half of the index under which it was taken
//!                    1     answer: 0, or one more than the index of the response that was written for it
//!                    2..   the request, as the 64-bit ABI lays it out; the high half of the index is in
//!                          what is padding there
//! ```
//!
//! Indexes here have 64 bits, of which the ring's are the low 32: an entry may lie unused while they
//! wrap. With P the responses published, as the ring has it, an entry is **over** where it has an answer
//! below P, **owed** where it is not over and was taken below T, and **free** otherwise. An entry is
//! used again when it is over and not before; its number says nothing of its request's index.
//!
//! From taking a request to publishing its response, whoever stores to the ring (R) or to the journal
//! (J) may be killed before and after each store. What the next process then sees of that request:
//!
//! ```text
//!   take     1  the slot is copied out of R                    on the ring: it is taken again
//!            2  J entry: the request                           the entry is over, as its last user was, or
//!                                                              was never used: on the ring
//!            3  J entry: head                                  the same
//!            4  J entry: no answer                             its index is T: not yet taken, forgotten; on the ring
//!            5  J taken = T + 1                                owed
//!   answer   6  R the response, into slot i % slots            owed; what lies there is written again
//!            7  J entry: answer i + 1                          i is not below P: owed
//!   publish  8  R rsp_prod = P, beyond i                       over: it is never done again
//!            9  the event                                      over; the next process always sends one
//! ```
//!
//! Between 6 and 8 a request may have been done and is done again: reads, writes, flushes and
//! discards may be, as long as no guest was told of the first time. What is owed is begun anew in
//! the order in which it was taken, before anything else is taken, so barriers keep theirs. Taking
//! up is a sequence of stores too ([`Journal::resume`]), and may be cut short and repeated.
//!
//! The ring carries the journal's mark in its padding: a guest that made itself a new ring meanwhile, in the
//! same pages and by the same names, has one without it.
//!
//! Before: `connect`. After: `receive`, around whose [`Requests`](crate::receive::Requests) it is put
//! ([`Journaled`]). Trust: the file is ours, in a folder of ours; it is checked all the same, and what does not fit
//! is refused by name ([`Refused`]). The ring is the guest's: what it does to the index or the mark
//! costs it the connection. What is owed is checked like any request. Not held against: a crash of the
//! machine, after which no ring is left either. Units: words of 8 bytes.

mod cells;
mod files;
mod identity;
mod map;
mod record;
mod requests;
mod take_up;

pub use cells::Cells;
pub use files::{Journals, Kept};
pub use identity::{Identity, Refused};
pub use map::Map;
pub use requests::{Journaled, Noted};
pub use take_up::{Journal, Owed, mark};

/// Words in front of the first entry.
const HEADER: usize = 512;
/// Words of one entry.
const ENTRY: usize = 16;
/// Where the mark lies.
const MARKED: usize = 2;
/// Where the identity lies.
const IDENTITY: usize = 3;
/// Where its check lies.
const CHECK: usize = 33;
/// Where the number of requests taken lies.
const TAKEN: usize = 64;
/// Where it is said why flushes cannot succeed.
const LOST: usize = 72;

/// Words in an entry that are not its request's.
const HEAD: usize = 0;
const ANSWER: usize = 1;
const REQUEST: usize = 2;

const MAGIC: u64 = u64::from_le_bytes(*b"domkitbj");
/// Another number for whatever changes above.
pub const VERSION: u64 = 1 | (HEADER as u64) << 16 | (ENTRY as u64) << 32;

/// Words of a journal for a ring of `slots` slots.
#[must_use]
pub fn words(slots: u32) -> usize {
    place(slots)
}

/// Where entry `entry` begins.
fn place(entry: u32) -> usize {
    (entry as usize).saturating_mul(ENTRY).saturating_add(HEADER)
}
