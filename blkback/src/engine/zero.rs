//! How a range of a medium comes to read as zeroes.
//!
//! The kernel is asked first, as the file system or the device need not be given what they can make up. What it
//! refuses is written. On a block device `FALLOC_FL_ZERO_RANGE` does what the ioctl `BLKZEROOUT` does,
//! and can be handed to io_uring. Source: fallocate(2). Units: bytes.

use std::fs::File;
use std::io::IoSlice;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::pwritev;

use crate::engine::blocking::retried;
use crate::engine::pieces;
use crate::image::Media;

/// One way, from the cheapest to the one that always works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Free the range: what is in a hole reads as zeroes.
    Punch,
    /// Have the kernel zero it where it lies.
    Range,
    /// Write zeroes.
    Written,
}

impl Manner {
    /// What to begin with on `media`, where the range may be freed or, without `unmap`, may not.
    pub(super) fn first(media: &Media, unmap: bool) -> Self {
        if unmap && media.geometry().discard.is_some() { Self::Punch } else { Self::Range }
    }

    /// The flags of `fallocate`, where that does it.
    pub(super) fn mode(self) -> Option<FallocateFlags> {
        let how = match self {
            Self::Punch => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            Self::Range => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            Self::Written => return None,
        };
        Some(how | FallocateFlags::FALLOC_FL_KEEP_SIZE)
    }

    const fn next(self) -> Self {
        match self {
            Self::Punch => Self::Range,
            Self::Range | Self::Written => Self::Written,
        }
    }
}

/// Whether an error says that there is no such way here or now, and not that it went wrong. `EBUSY`: the page cache
/// has something of a block device's range that is not written back, and that somebody holds exclusively.
pub(super) const fn no_such_way(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EBUSY)
}

/// Zeroes `len` bytes from `offset` on, beginning with `manner`. May take long.
///
/// # Errors
///
/// A positive `errno`.
pub(super) fn in_turn(file: &File, offset: u64, len: u64, mut manner: Manner) -> Result<u64, i32> {
    let range = (i64::try_from(offset), i64::try_from(len));
    let (Ok(at), Ok(bytes)) = range else { return Err(libc::EINVAL) };
    while let Some(mode) = manner.mode() {
        match retried(|| fallocate(file, mode, at, bytes)) {
            Err(errno) if no_such_way(errno) => manner = manner.next(),
            other => return other,
        }
    }
    write(file, offset, len).map(|()| 0)
}

/// Bytes of zeroes, aligned as transfers past the page cache need them.
const BLOCK: usize = 64 << 10;
/// So many of them go with one call.
const BLOCKS: usize = 16;

#[repr(align(4096))]
struct Zeroes([u8; BLOCK]);

static ZEROES: Zeroes = Zeroes([0; BLOCK]);

fn write(file: &File, offset: u64, len: u64) -> Result<(), i32> {
    let (mut at, mut left) = (offset, len);
    let mut tries = 0_u32;
    while left > 0 {
        let mut now = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK * BLOCKS);
        let mut slices = Vec::with_capacity(BLOCKS);
        while let Some(slice) = ZEROES.0.get(..now.min(BLOCK)).filter(|slice| !slice.is_empty()) {
            slices.push(IoSlice::new(slice));
            now = now.saturating_sub(slice.len());
        }
        let from = i64::try_from(at).map_err(|_| libc::EINVAL)?;
        match pwritev(file, &slices, from) {
            Ok(0) => return Err(libc::EIO),
            Ok(moved) => {
                at = at.saturating_add(moved as u64);
                left = left.saturating_sub(moved as u64);
            }
            Err(errno) if pieces::passing(errno as i32) && tries < pieces::TRIES => {
                tries = tries.saturating_add(1);
            }
            Err(errno) => return Err(errno as i32),
        }
    }
    Ok(())
}
