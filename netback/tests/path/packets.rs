//! Packets whose every byte is known, made without the code under test.

/// What a packet is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    /// Bytes behind the headers.
    pub(crate) payload: usize,
    pub(crate) seed: u8,
}

impl Shape {
    pub(crate) const fn transport(&self) -> usize {
        if self.v6 { 54 } else { 34 }
    }

    pub(crate) const fn headers(&self) -> usize {
        self.transport() + if self.tcp { 20 } else { 8 }
    }

    /// The packet, with its checksums.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let len = self.headers() - self.transport() + self.payload;
        let number = if self.tcp { 6 } else { 17 };
        let mut pseudo = vec![];
        if self.v6 {
            bytes.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
            bytes.extend((len as u16).to_be_bytes());
            bytes.extend([number, 64]);
            let addresses: Vec<u8> = (0..32).map(|n| n ^ self.seed).collect();
            bytes.extend(&addresses);
            pseudo.extend(&addresses);
        } else {
            bytes.extend([0x08, 0x00, 0x45, 0]);
            bytes.extend((20 + len as u16).to_be_bytes());
            bytes.extend([0x12, 0x34, 0x40, 0, 64, number, 0, 0, 10, 0, 0, 1, 10, 0, 0, self.seed]);
            pseudo.extend(&bytes[26..34]);
            let sum = checksum(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        pseudo.extend([0, number]);
        pseudo.extend((len as u16).to_be_bytes());
        bytes.extend([0x10, 0x20, 0x30, 0x40]);
        if self.tcp {
            bytes.extend([0xFF, 0xFF, 0xFF, 0x00, 0, 0, 0, 1, 0x50, 0x99, 0x10, 0, 0, 0, 0, 0]);
        } else {
            bytes.extend((len as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend((0..self.payload).map(|n| (n as u8) ^ (n >> 8) as u8 ^ self.seed));
        pseudo.extend(&bytes[self.transport()..]);
        let at = self.transport() + if self.tcp { 16 } else { 6 };
        let sum = written(checksum(&pseudo), self.tcp);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Where its checksum is.
    pub(crate) const fn sum_at(&self) -> usize {
        self.transport() + if self.tcp { 16 } else { 6 }
    }
}

/// The Internet checksum, one word after another.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xFFFF,
        sum => sum,
    }
}

/// How a checksum is written: what has two forms, zero and all ones, is never zero in UDP, where that would
/// say that there is none.
fn written(sum: u16, tcp: bool) -> u16 {
    if tcp && sum == 0xFFFF { 0 } else { sum }
}

/// Completes a checksum as whoever reads the header has to.
pub(crate) fn complete(packet: &mut [u8], start: usize, offset: usize) {
    let sum = written(checksum(&packet[start..]), offset == 16);
    packet[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
}
