//! Whether transfers go past the page cache, and how they must lie if so.
//!
//! Past it (`O_DIRECT`) the guest's cache is the only one: memory is not filled twice, an
//! acknowledged write has reached the device, and io_uring hands requests to the device without a
//! worker thread in between. `auto` chooses that wherever it works. It does not on a file system
//! that keeps files in memory, where the page cache *is* the medium: there each transfer is a copy
//! that never waits for a device, and is done on the queue's own thread.
//!
//! That it works is tested, not believed: what the file system says (`STATX_DIOALIGN`) is tried with
//! a read. Sources: open(2), statx(2).
#![expect(unsafe_code, reason = "statx takes raw pointers")]

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use hypervisor::{ConfigError, Error};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};

use crate::image::{Kind, reopen};

/// ramfs (linux/magic.h).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Whether to go past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direct {
    /// Go past it, or refuse to serve.
    On,
    /// Go through it.
    Off,
    /// Go past it where that works and makes sense.
    #[default]
    Auto,
}

impl FromStr for Direct {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            _ => Err(ConfigError::new("direct", word, "must be on, off or auto")),
        }
    }
}

impl fmt::Display for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Auto => "auto",
        })
    }
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfers {
    /// Past the page cache. Every piece of memory begins at a multiple of `memory` bytes; places
    /// on the medium and lengths are multiples of `offset` bytes.
    Direct {
        /// Memory's alignment.
        memory: u32,
        /// The medium's.
        offset: u32,
    },
    /// Through the page cache, to a device.
    Buffered,
    /// To and from a file that lies in memory.
    Resident,
}

/// Chooses, and says why where the page cache is used although it was not asked for.
pub(super) fn choose(
    claim: &File,
    path: &Path,
    kind: Kind,
    wish: Direct,
    sector_size: u32,
) -> Result<(Transfers, Option<String>), Error> {
    let resident = kind == Kind::File && is_resident(claim);
    let otherwise = if resident { Transfers::Resident } else { Transfers::Buffered };
    if wish == Direct::Off || (wish == Direct::Auto && resident) {
        return Ok((otherwise, None));
    }
    match probe(claim, sector_size) {
        Ok((memory, offset)) => {
            forget_cached(claim);
            Ok((Transfers::Direct { memory, offset }, None))
        }
        Err(why) if wish == Direct::Auto => Ok((otherwise, Some(why))),
        Err(why) => {
            let problem = format!("cannot be had for {}: {why}; use --direct auto", path.display());
            Err(ConfigError::new("direct", wish, problem).into())
        }
    }
}

/// Drops what the page cache holds of the image. A transfer past it must first put cached pages out
/// of the way, which may wait, so io_uring would leave each to a worker.
fn forget_cached(file: &File) {
    // Only advice: where it is not taken, those workers do it, page by page.
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

fn is_resident(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&found.filesystem_type()))
}

/// The alignments, memory's and the medium's, with which a direct read succeeded; or why none did.
fn probe(claim: &File, sector_size: u32) -> Result<(u32, u32), String> {
    let file = reopen(claim, true, true)
        .map_err(|error| format!("the file system refuses O_DIRECT ({error})"))?;
    let candidates = match stated(&file) {
        Some((0, _) | (_, 0)) => return Err("the file system has no direct I/O".into()),
        Some(both) => vec![both],
        // An older kernel or a file system that does not say.
        None => vec![(512, 512), (4096, 4096)],
    };
    let mut why = String::new();
    for (memory, offset) in candidates {
        if !sector_size.is_multiple_of(offset) {
            why = format!(
                "direct transfers must be of {offset} bytes and sectors have {sector_size}; \
                 --sector-size 4096 may help"
            );
            continue;
        }
        match try_read(&file, memory, offset) {
            Ok(()) => return Ok((memory, offset)),
            Err(error) => why = format!("a direct read of {offset} bytes failed ({error})"),
        }
    }
    Err(why)
}

/// Memory's and the medium's alignment as the file system states them; zeroes where it has no
/// direct I/O.
fn stated(file: &File) -> Option<(u32, u32)> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty string, and the kernel writes one statx.
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            found.as_mut_ptr(),
        )
    };
    // SAFETY: all zeroes are a valid statx, whether or not the kernel wrote more.
    let found = unsafe { found.assume_init() };
    let says = status == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0;
    says.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align))
}

/// Reads the first `offset` bytes into memory that is aligned to `memory` bytes and no more.
fn try_read(file: &File, memory: u32, offset: u32) -> std::io::Result<()> {
    let (memory, offset) = (memory.max(1) as usize, offset as usize);
    let mut bytes = vec![0_u8; offset.saturating_add(memory.saturating_mul(3))];
    let aligned = bytes.as_ptr().align_offset(memory.saturating_mul(2));
    // One unit beyond the next rounder place: aligned as stated, and not better by luck.
    let from = aligned.saturating_add(memory).min(bytes.len());
    let into = bytes.get_mut(from..).and_then(|rest| rest.get_mut(..offset));
    file.read_at(into.unwrap_or_default(), 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wish_is_read_and_written_alike() {
        for wish in [Direct::On, Direct::Off, Direct::Auto] {
            assert_eq!(wish.to_string().parse::<Direct>().unwrap(), wish);
        }
        let error = "maybe".parse::<Direct>().unwrap_err();
        assert_eq!(error.to_string(), "direct 'maybe': must be on, off or auto");
    }
}
