//! One request in a journal's words.
//!
//! It is kept as a ring of the 64-bit ABI would have it, whatever the frontend's own: nothing of what a
//! request says is lost by that, and no words are spent on segments that it does not have.

use ring::Protocol;
use ring::wire::blkif::{Blkif, Kind, MAX_SEGMENTS, Request, X86_64, operation};

/// Words of the longest.
pub(super) const LONGEST: usize = 14;
/// Bytes of the longest.
const BYTES: usize = LONGEST * 8;
/// Words in front of the segments.
const FRONT: usize = 3;

/// The half of a word in which the high half of an index, or a check, is kept.
const HIGH: u64 = 0xffff_ffff << 32;

/// Odd, so that no change of a single word goes unseen.
const KEYS: [u64; 32] = keys();

/// Gives the words of a request that is taken under `index`, one by one with their numbers, to `keep`, and then
/// the head of its entry.
#[inline]
pub(super) fn write(request: &Request, index: u64, mut keep: impl FnMut(usize, u64)) -> u64 {
    let [first, rest @ ..] = &KEYS;
    let mut sum = start(index, *first);
    let mut keys = rest.iter().enumerate();
    let mut word = |word: u64| {
        if let Some((n, key)) = keys.next() {
            sum = sum.wrapping_add(word.wrapping_mul(*key));
            keep(n, word);
        }
    };
    let plain = match &request.kind {
        Kind::Read(data) => Some((operation::READ, data)),
        Kind::Write(data) => Some((operation::WRITE, data)),
        Kind::Barrier(data) => Some((operation::WRITE_BARRIER, data)),
        Kind::Flush(data) => Some((operation::FLUSH_DISKCACHE, data)),
        _ => None,
    };
    let plain = plain.and_then(|(code, data)| Some((code, data, data.segments.get().ok()?)));
    if let Some((code, data, segments)) = plain {
        // What most requests are, without a detour over bytes.
        let count = u64::from(data.segments.claimed());
        let about = u64::from(code) | count << 8 | u64::from(request.handle) << 16;
        word(about | index & HIGH);
        word(request.id);
        word(data.sector);
        for segment in segments {
            let part = u64::from(segment.first) << 32 | u64::from(segment.last) << 40;
            word(u64::from(segment.gref.0) | part);
        }
    } else {
        let mut bytes = [0; BYTES];
        Blkif::<X86_64>::encode_request(request, &mut bytes);
        let mut left = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        // The low half of the first holds operation, count and handle; the high half is padding.
        let about = left.next().unwrap_or(0) & !HIGH | index & HIGH;
        word(about);
        left.take(used(about).saturating_sub(1)).for_each(word);
    }
    head_of(sum, index)
}

/// How many words a request has that begins with `first`.
pub(super) fn used(first: u64) -> usize {
    let [operation, count, ..] = first.to_le_bytes();
    if operation <= operation::FLUSH_DISKCACHE { with_segments(count) } else { other(operation) }
}

/// The request that [`write`](fn@write) made `words` of, and the high half of its index.
pub(super) fn read(words: &[u64; LONGEST]) -> (Request, u64) {
    let [first, ..] = words;
    let mut bytes = [0; BYTES];
    for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    let [_, _, _, _, a, b, c, d, ..] = &mut bytes;
    [*a, *b, *c, *d] = [0; 4];
    (Blkif::<X86_64>::decode_request(&bytes), first & HIGH)
}

#[inline]
fn with_segments(claimed: u8) -> usize {
    FRONT.saturating_add(usize::from(claimed).min(MAX_SEGMENTS))
}

fn other(operation: u8) -> usize {
    match operation {
        operation::DISCARD => 4,
        operation::INDIRECT => 8,
        _ => FRONT,
    }
}

/// The head of the entry of request `index`, which is `words`: never zero.
pub(super) fn head(index: u64, words: &[u64]) -> u64 {
    head_of(sum(index, words), index)
}

#[inline]
fn head_of(sum: u64, index: u64) -> u64 {
    (sum ^ sum << 32) & HIGH | 1 << 32 | index & !HIGH
}

/// A sum that each word, and the place of each, has its part in. Its terms do not wait for each other.
pub(super) fn sum(seed: u64, words: &[u64]) -> u64 {
    let [first, rest @ ..] = &KEYS;
    let terms = words.iter().zip(rest).map(|(word, key)| word.wrapping_mul(*key));
    terms.fold(start(seed, *first), u64::wrapping_add)
}

#[inline]
fn start(seed: u64, key: u64) -> u64 {
    seed.wrapping_add(1).wrapping_mul(key)
}

/// Numbers that look like nothing (splitmix64), made odd.
const fn keys() -> [u64; 32] {
    let mut keys = [0; 32];
    let mut left: &mut [u64] = &mut keys;
    let mut state = 0x646f_6d6b_6974_626a_u64;
    while let [key, rest @ ..] = left {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *key = (mixed ^ (mixed >> 31)) | 1;
        left = rest;
    }
    keys
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::wire::blkif::X86_32;

    use super::*;

    fn check(request: &Request, index: u64) {
        let (mut kept, mut count) = ([0; LONGEST], 0);
        let said = write(request, index, |n, word| {
            assert_eq!(n, count, "one after the other");
            kept[n] = word;
            count += 1;
        });
        assert_eq!(used(kept[0]), count);
        assert_eq!(said, head(index, &kept[..count]));
        let (again, high) = read(&kept);
        let same = match &request.kind {
            // Nothing of one is known but its first bytes; the answer echoes id and operation.
            Kind::Unknown(_) => (again.operation, again.id) == (request.operation, request.id),
            _ => again == *request,
        };
        assert!(same, "{request:?} became {again:?}");
        assert_eq!(high, index & HIGH);
        assert!(said != 0 && said & !HIGH == index & !HIGH);
    }

    proptest! {
        #[test]
        fn whatever_a_guest_asks_is_kept_as_it_is(
            mut bytes in proptest::collection::vec(any::<u8>(), 112..=112),
            operation in 0_u8..9,
            count in 0_u8..14,
            index in any::<u64>(),
        ) {
            bytes[0] = operation;
            if operation != 6 { bytes[1] = count; }
            let wide: [u8; 112] = bytes[..].try_into().unwrap();
            check(&Blkif::<X86_64>::decode_request(&wide), index);
            let narrow: [u8; 108] = bytes[..108].try_into().unwrap();
            check(&Blkif::<X86_32>::decode_request(&narrow), index);
        }

        #[test]
        fn a_word_that_changed_or_moved_is_seen(
            words in proptest::collection::vec(any::<u64>(), 2..14),
            at in any::<proptest::sample::Index>(),
            flip in 0_u32..64,
            index in any::<u64>(),
        ) {
            let whole = head(index, &words);
            let mut other = words.clone();
            let at = at.index(words.len());
            other[at] ^= 1 << flip;
            prop_assert_ne!(sum(index, &other), sum(index, &words));
            let mut moved = words.clone();
            moved.swap(0, 1);
            prop_assert!(words[0] == words[1] || sum(index, &moved) != sum(index, &words));
            prop_assert_eq!(head(index, &words), whole);
        }
    }
}
