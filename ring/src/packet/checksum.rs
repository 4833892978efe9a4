//! The Internet checksum: the one's complement of the one's complement sum of 16-bit words.
//!
//! Such a sum can be taken in any byte order and in any grouping, so bytes are added four at a time
//! as they lie and the two ends are swapped once at the end.
//!
//! Source: RFC 1071.

/// A sum of bytes, which may come in pieces of any length.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum {
    /// In the machine's byte order, folded to 16 bits after each piece.
    folded: u16,
    /// Whether an odd number of bytes was added.
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self { folded: 0, odd: false };

    /// The sum of `bytes`.
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { folded: fold(add_up(bytes)), odd: bytes.len() % 2 == 1 }
    }

    /// This and the `bytes` that follow.
    #[inline]
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        let piece = Self::of(bytes);
        // After an odd number of bytes the next is the low half of a word, not the high one.
        let folded = if self.odd { piece.folded.swap_bytes() } else { piece.folded };
        Self {
            folded: fold(u64::from(self.folded).saturating_add(u64::from(folded))),
            odd: self.odd != piece.odd,
        }
    }

    /// This and a word that follows an even number of bytes.
    #[inline]
    #[must_use]
    pub fn and_word(self, word: u16) -> Self {
        self.and(&word.to_be_bytes())
    }

    /// The sum itself, which is what a blank checksum holds of the pseudo-header.
    #[inline]
    #[must_use]
    pub const fn sum(self) -> u16 {
        u16::from_be(self.folded)
    }

    /// The checksum: what makes the sum of the whole all ones.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.sum()
    }

    /// Whether bytes that include their checksum are as they were.
    #[inline]
    #[must_use]
    pub const fn is_right(self) -> bool {
        self.folded == u16::MAX
    }
}

/// The words of `bytes`, the last one filled up with zero, in the machine's byte order.
#[inline]
fn add_up(bytes: &[u8]) -> u64 {
    // 2^32 words of 32 bits fit 64, and packets are far shorter: no addition here saturates.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = 0_u64;
    for word in words {
        total = total.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    }
    let mut last = [0; 4];
    for (room, byte) in last.iter_mut().zip(rest) {
        *room = *byte;
    }
    total.wrapping_add(u64::from(u32::from_ne_bytes(last)))
}

/// `total` modulo 2^16 - 1, where zero stays apart from it.
#[inline]
const fn fold(total: u64) -> u16 {
    let total = (total & 0xFFFF_FFFF).wrapping_add(total >> 32);
    let total = (total & 0xFFFF_FFFF).wrapping_add(total >> 32);
    let total = (total & 0xFFFF).wrapping_add(total >> 16);
    let total = (total & 0xFFFF).wrapping_add(total >> 16);
    total as u16
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Word by word, as the RFC defines it.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum as u16
    }

    /// RFC 1071, section 3.
    #[test]
    fn the_example_of_the_rfc() {
        let sum = Sum::of(&[0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7]);
        assert_eq!((sum.sum(), sum.checksum()), (0xDDF2, !0xDDF2));
    }

    /// An IPv4 header with its checksum, 0xB861, and without.
    #[test]
    fn a_header_with_its_checksum_is_right() {
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xB8, 0x61, 0xC0, 0xA8,
            0x00, 0x01, 0xC0, 0xA8, 0x00, 0xC7,
        ];
        assert!(Sum::of(&header).is_right());
        header[10..12].fill(0);
        assert!(!Sum::of(&header).is_right());
        assert_eq!(Sum::of(&header).checksum(), 0xB861);
    }

    #[test]
    fn the_sum_of_nothing_is_zero() {
        assert_eq!((Sum::of(&[]).sum(), Sum::ZERO.checksum()), (0, 0xFFFF));
        assert_eq!(Sum::of(&[0; 65_535]).sum(), 0);
        assert_eq!(Sum::of(&[0xFF; 65_535]).sum(), naive(&[0xFF; 65_535]));
    }

    proptest! {
        #[test]
        fn any_bytes_have_the_naive_sum(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&bytes).sum(), naive(&bytes));
        }

        /// However the bytes are cut.
        #[test]
        fn pieces_have_the_sum_of_the_whole(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
        ) {
            let sum = pieces.iter().fold(Sum::ZERO, |sum, piece| sum.and(piece));
            let whole: Vec<u8> = pieces.concat();
            prop_assert_eq!(sum.sum(), naive(&whole));
            prop_assert_eq!(sum.odd, whole.len() % 2 == 1);
        }

        #[test]
        fn a_checksum_makes_it_right(words in prop::collection::vec(any::<u16>(), 1..700)) {
            let sum = words.iter().fold(Sum::ZERO, |sum, word| sum.and_word(*word));
            prop_assert!(sum.and_word(sum.checksum()).is_right());
        }
    }
}
