//! Which pages of the machine's were written, for its migration.
//!
//! A bit for each 4096 bytes of its addresses, in memory that the monitor shares. Source: QEMU,
//! docs/interop/vhost-user.rst, "Migration".

use std::fs::File;

use super::map::Map;
use crate::Error;

/// Bytes that a bit stands for.
const PAGE: u64 = 4096;

/// The bits.
#[derive(Debug)]
pub struct Log {
    map: Map,
    bytes: u64,
}

impl Log {
    pub(super) fn of(file: &File, offset: u64, bytes: u64) -> Result<Self, Error> {
        Ok(Self { map: Map::of(file, offset, bytes)?, bytes })
    }

    /// Notes that `len` bytes from `at` on were written. What the bits do not reach is not noted.
    pub fn wrote(&self, at: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else { return };
        let last = at.saturating_add(last).checked_div(PAGE).unwrap_or(0);
        let first = at.checked_div(PAGE).unwrap_or(0);
        let most = self.bytes.saturating_mul(8);
        for page in first..=last.min(most.saturating_sub(1)) {
            let at = usize::try_from(page >> 3).unwrap_or(usize::MAX);
            self.map.set_bits(at, 1 << (page & 7));
        }
    }
}
