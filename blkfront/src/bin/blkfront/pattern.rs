//! Data that says where it belongs and which writing of that place it is.
//!
//! Every sector differs from every other and from what it was before, so data that ended up in the
//! wrong place, or is of an earlier write, is told from what should be there.

/// Bytes that one pattern covers.
pub(crate) const UNIT: u64 = 512;

/// Fills `bytes`, which lie at byte `offset` of the disk, for the `generation`-th time.
pub(crate) fn fill(bytes: &mut [u8], offset: u64, generation: u32) {
    let mut at = offset;
    for unit in bytes.chunks_mut(UNIT as usize) {
        let mut state = at.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (u64::from(generation) << 40);
        for word in unit.chunks_mut(8) {
            state = next(state);
            let value = state.to_le_bytes();
            for (byte, value) in word.iter_mut().zip(value) {
                *byte = value;
            }
        }
        at = at.wrapping_add(UNIT);
    }
}

/// The first byte of `bytes` that is not as [`fill`] made it.
pub(crate) fn mismatch(
    bytes: &[u8],
    offset: u64,
    generation: u32,
    wanted: &mut Vec<u8>,
) -> Option<usize> {
    wanted.resize(bytes.len(), 0);
    fill(wanted, offset, generation);
    if bytes == wanted.as_slice() {
        return None;
    }
    bytes.iter().zip(wanted).position(|(is, wanted)| *is != *wanted)
}

/// The next of a sequence of numbers that look random.
pub(crate) fn next(state: u64) -> u64 {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_and_every_writing_differ() {
        let mut seen = std::collections::HashSet::new();
        for generation in 1..20 {
            let mut bytes = vec![0; 64 * 512];
            fill(&mut bytes, 0, generation);
            for unit in bytes.chunks(512) {
                assert!(seen.insert(unit.to_vec()));
            }
        }
    }

    #[test]
    fn what_is_wrong_is_found() {
        let mut bytes = vec![0; 4096];
        fill(&mut bytes, 8192, 3);
        let mut scratch = Vec::new();
        assert_eq!(mismatch(&bytes, 8192, 3, &mut scratch), None);
        assert!(mismatch(&bytes, 8192, 2, &mut scratch).is_some());
        assert!(mismatch(&bytes, 4096, 3, &mut scratch).is_some());
        bytes[1234] ^= 1;
        assert_eq!(mismatch(&bytes, 8192, 3, &mut scratch), Some(1234));
    }
}
