//! Checks every claim of a request against the disk's bounds and rules.
//!
//! Before: `segments`. After: `throttle`. What passes is in bytes, inside the disk, and aligned to the
//! disk's sectors; no later stage checks again. What does not pass is
//! answered with an error and counted by name; it ends nothing, as a stock backend would not either.
//!
//! Source: `struct blkif_request` (io/blkif.h, RELEASE-4.17); `struct virtio_blk_req` (virtio 1.2,
//! 5.2.6): positions are in 512-byte units whatever the disk's sectors, and must be multiples of those.

use hypervisor::memory::{MapFailed, Outside};
use ring::wire::blkif::SECTOR_SIZE;

use crate::receive::Answer;
use crate::segments::Asked;

const SECTOR: u64 = SECTOR_SIZE as u64;

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read from the medium into the guest.
    Read,
    /// Write from the guest to the medium.
    Write,
    /// Put earlier writes on stable storage; then write what it carries, if it carries something.
    Flush,
    /// Write in order.
    Barrier,
    /// Forget a range.
    Discard {
        /// Beyond recovery.
        secure: bool,
    },
    /// Have a range read as zeroes.
    Zero {
        /// It need not keep its place on the medium.
        unmap: bool,
    },
}

impl Action {
    /// Whether it names ranges of the disk and carries no data.
    #[inline]
    #[must_use]
    pub const fn names_ranges(self) -> bool {
        matches!(self, Self::Discard { .. } | Self::Zero { .. })
    }
}

/// A request that passed, without its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What is to be done.
    pub action: Action,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; 0 for what carries no data.
    pub len: u64,
}

/// What requests are checked against. The size is given apart, since it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rules {
    /// Bytes in one of the disk's own sectors: 512 or 4096.
    pub sector_size: u32,
    /// Nothing may be changed.
    pub read_only: bool,
    /// The medium can forget ranges.
    pub discard: bool,
    /// It can do so beyond recovery.
    pub secure_discard: bool,
    /// Zeroes have to be written like other data, so they count as such where bytes are limited.
    pub zeroes_are_written: bool,
}

impl Rules {
    /// A writable disk with 512-byte sectors that cannot discard.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            sector_size: 512,
            read_only: false,
            discard: false,
            secure_discard: false,
            zeroes_are_written: false,
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such operation.
    UnknownOperation,
    /// The medium cannot discard.
    NoDiscard,
    /// More segments than there can be, or an indirect request without any.
    SegmentCount,
    /// An indirect request for something other than reading or writing.
    IndirectOperation,
    /// A read or write without segments, or a discard of nothing.
    Empty,
    /// A segment that ends before it begins.
    SegmentReversed,
    /// A segment that ends behind its page.
    SegmentPastPage,
    /// Something is not a multiple of the disk's sectors.
    Misaligned,
    /// It ends behind the disk.
    PastEnd,
    /// It would change a disk that is read-only.
    ReadOnly,
    /// The hypervisor refused one of its grants.
    GrantRefused,
    /// The hypervisor could not be asked.
    HostFailed,
    /// Its data lies where the machine has no memory.
    OutsideMemory,
    /// It has data for the device to write where that is to read, or the other way round.
    WrongDirection,
    /// A range to discard or to zero has flags that mean nothing there.
    RangeFlags,
    /// A range to discard or to zero is longer than the disk said one may be.
    RangeTooLong,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::UnknownOperation,
        Self::NoDiscard,
        Self::SegmentCount,
        Self::IndirectOperation,
        Self::Empty,
        Self::SegmentReversed,
        Self::SegmentPastPage,
        Self::Misaligned,
        Self::PastEnd,
        Self::ReadOnly,
        Self::GrantRefused,
        Self::HostFailed,
        Self::OutsideMemory,
        Self::WrongDirection,
        Self::RangeFlags,
        Self::RangeTooLong,
    ];

    /// What it is counted as.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownOperation => "unknown_operation",
            Self::NoDiscard => "no_discard",
            Self::SegmentCount => "segment_count",
            Self::IndirectOperation => "indirect_operation",
            Self::Empty => "empty",
            Self::SegmentReversed => "segment_reversed",
            Self::SegmentPastPage => "segment_past_page",
            Self::Misaligned => "misaligned",
            Self::PastEnd => "past_end",
            Self::ReadOnly => "read_only",
            Self::GrantRefused => "grant_refused",
            Self::HostFailed => "host_failed",
            Self::OutsideMemory => "outside_memory",
            Self::WrongDirection => "wrong_direction",
            Self::RangeFlags => "range_flags",
            Self::RangeTooLong => "range_too_long",
        }
    }

    /// How it is answered.
    #[must_use]
    pub const fn answer(self) -> Answer {
        match self {
            Self::UnknownOperation | Self::NoDiscard | Self::RangeFlags => Answer::Unsupported,
            _ => Answer::Failed,
        }
    }
}

impl From<MapFailed> for Refusal {
    fn from(failed: MapFailed) -> Self {
        match failed {
            MapFailed::Refused { .. } => Self::GrantRefused,
            _ => Self::HostFailed,
        }
    }
}

impl From<Outside> for Refusal {
    fn from(_: Outside) -> Self {
        Self::OutsideMemory
    }
}

impl Rules {
    /// Checks `asked` against a disk of `sectors` sectors of 512 bytes.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    #[inline]
    pub fn check(&self, asked: &Asked, sectors: u64) -> Result<Checked, Refusal> {
        let unit = u64::from(self.sector_size).max(SECTOR);
        let Asked { mut action, sector, len } = *asked;
        if let Action::Discard { secure } = &mut action {
            if !self.discard {
                return Err(Refusal::NoDiscard);
            }
            // The flag is ignored where secure discard was not offered (io/blkif.h).
            *secure &= self.secure_discard;
        }
        if let Action::Zero { unmap } = &mut action {
            // Where nothing may be given up, zeroes are as good as any other data.
            *unmap &= self.discard;
        }
        if len == 0 {
            return match action {
                Action::Flush | Action::Barrier => Ok(Checked { action, offset: 0, len }),
                _ => Err(Refusal::Empty),
            };
        }
        if self.read_only && action != Action::Read {
            return Err(Refusal::ReadOnly);
        }
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::PastEnd)?;
        let end = offset.checked_add(len).ok_or(Refusal::PastEnd)?;
        if end > sectors.saturating_mul(SECTOR) {
            return Err(Refusal::PastEnd);
        }
        if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(Refusal::Misaligned);
        }
        Ok(Checked { action, offset, len })
    }

    /// Checks each of `asked` likewise, into `into`. Gives the first one with the bytes of all of them.
    ///
    /// # Errors
    ///
    /// The first rule that is broken by any.
    pub fn check_ranges(
        &self,
        asked: &[Asked],
        sectors: u64,
        into: &mut Vec<Checked>,
    ) -> Result<Checked, Refusal> {
        into.clear();
        for one in asked {
            into.push(self.check(one, sectors)?);
        }
        let first = into.first().copied().ok_or(Refusal::Empty)?;
        let len = into.iter().fold(0_u64, |all, range| all.saturating_add(range.len));
        Ok(Checked { len, ..first })
    }

    /// Operations and bytes that a request costs where there are limits, as `len` bytes in `ranges` ranges. What
    /// is named and not moved costs no bytes.
    #[inline]
    #[must_use]
    pub const fn cost(&self, action: Action, len: u64, ranges: usize) -> (u64, u64) {
        let bytes = match action {
            Action::Discard { .. } => 0,
            Action::Zero { unmap } if unmap || !self.zeroes_are_written => 0,
            _ => len,
        };
        (if ranges > 1 { ranges as u64 } else { 1 }, bytes)
    }
}

#[cfg(test)]
mod tests;
