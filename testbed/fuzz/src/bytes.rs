//! An input, read as a script.

/// Bytes that are taken from the front; where there are none left, zeroes.
#[derive(Clone, Debug)]
pub struct Bytes {
    all: Vec<u8>,
    at: usize,
}

impl Bytes {
    /// A script of `all`.
    #[must_use]
    pub fn new(all: &[u8]) -> Self {
        Self { all: all.to_vec(), at: 0 }
    }

    /// Whether there is nothing left.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.at >= self.all.len()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let byte = self.all.get(self.at).copied().unwrap_or(0);
        self.at = self.at.saturating_add(1);
        byte
    }

    /// The next four as a number.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Up to `len` more.
    pub fn some(&mut self, len: usize) -> Vec<u8> {
        let rest = self.all.get(self.at..).unwrap_or_default();
        let some = rest.get(..len).unwrap_or(rest).to_vec();
        self.at = self.at.saturating_add(len);
        some
    }

    /// A position or a length on a disk of `sectors`: as a rule near one of its ends, and now and
    /// then any number at all.
    pub fn sector(&mut self, sectors: u64) -> u64 {
        let (how, by) = (self.byte(), u64::from(self.byte()));
        match how % 8 {
            0..=3 => by % (sectors + 1),
            4 | 5 => sectors.wrapping_add(by).wrapping_sub(16),
            6 => u64::MAX.wrapping_sub(by) >> (how >> 3),
            _ => u64::from(self.word()) << 32 | u64::from(self.word()),
        }
    }
}
