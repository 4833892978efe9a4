//! How large the medium is, and in what units it may be used.

use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hypervisor::{ConfigError, Error, HostError};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::image::{Kind, Options, block};

/// The most that a file's block size is taken for a physical sector (a guest's page).
const MOST_PHYSICAL: u64 = 4096;

/// A medium's measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// All of it, in bytes; a multiple of `sector_size`.
    pub size: u64,
    /// The least that can be read or written, in bytes: 512 or 4096.
    pub sector_size: u32,
    /// What is best read or written as a whole, in bytes.
    pub physical_sector_size: u32,
    /// Whether it must not be written.
    pub read_only: bool,
    /// Whether transfers go past the page cache.
    pub direct: bool,
    /// What discards it takes, where it takes any.
    pub discard: Option<DiscardLimits>,
    /// Whether a range that is to read as zeroes has to be written, unless it may be freed.
    pub zeroes_are_written: bool,
    /// What it says of transfers that suit it.
    pub hints: Hints,
}

/// Which transfers suit a medium. Zero where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Where the first whole physical sector begins, in bytes.
    pub alignment: u32,
    /// The least that does not make the medium read in order to write, in bytes (`minimum_io_size`).
    pub least: u32,
    /// The best for much data, in bytes (`optimal_io_size`).
    pub best: u32,
}

impl Geometry {
    /// A medium of `size` bytes that can be written, with nothing special about it.
    #[must_use]
    pub const fn new(size: u64, sector_size: u32) -> Self {
        Self {
            size,
            sector_size,
            physical_sector_size: sector_size,
            read_only: false,
            direct: false,
            discard: None,
            zeroes_are_written: false,
            hints: Hints { alignment: 0, least: 0, best: 0 },
        }
    }
}

/// What can be discarded, and what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscardLimits {
    /// What is freed as a whole, in bytes (`discard-granularity`).
    pub granularity: u32,
    /// Where the first such whole begins, in bytes (`discard-alignment`).
    pub alignment: u32,
    /// Whether a secure discard makes all copies on the device unrecoverable. That is promised only
    /// where the medium itself promises it: by a block device with secure erase, and by memory that
    /// is zeroed. A file system may have moved a file's data about, so a file never promises it.
    pub secure: bool,
}

impl DiscardLimits {
    /// Wholes of `granularity` bytes, the first one at the start of the medium.
    #[must_use]
    pub const fn new(granularity: u32, secure: bool) -> Self {
        Self { granularity, alignment: 0, secure }
    }
}

/// Refuses a sector size that there is not.
pub(super) fn check_sector_size(sector_size: Option<u32>) -> Result<(), ConfigError> {
    match sector_size {
        None | Some(512 | 4096) => Ok(()),
        Some(other) => Err(ConfigError::new("sector size", other, "must be 512 or 4096")),
    }
}

/// Refuses a size of nothing and one that ends within a sector.
pub(super) fn check_multiple(
    thing: &'static str,
    value: &dyn Display,
    size: u64,
    sector_size: u32,
) -> Result<(), ConfigError> {
    let unit = u64::from(sector_size);
    if size == 0 {
        let problem = "has no bytes at all; create an image with --size, as in --size 10G";
        return Err(ConfigError::new(thing, value, problem));
    }
    if size.is_multiple_of(unit) {
        return Ok(());
    }
    let Some(up) = size.checked_next_multiple_of(unit) else {
        return Err(ConfigError::new(thing, value, "is more than any image can have"));
    };
    let problem = match (sector_size, size.is_multiple_of(512)) {
        (4096, true) => format!(
            "{size} bytes are not a multiple of the 4096-byte sector; use --sector-size 512, or \
             round the size up to {up}"
        ),
        _ => format!(
            "{size} bytes are not a multiple of the {sector_size}-byte sector; round the size up \
             to {up} (truncate -s {up} FILE does so for a file)"
        ),
    };
    Err(ConfigError::new(thing, value, problem))
}

/// The size that the medium has now.
pub(super) fn size(file: &File, path: &Path, kind: Kind) -> Result<u64, HostError> {
    match kind {
        Kind::Block => block::size(file),
        Kind::File => file.metadata().map(|found| found.len()).map_err(|error| {
            HostError::from_io(format!("find the size of {}", path.display()), &error)
        }),
    }
}

/// Measures an open medium and refuses one that cannot be served as asked.
pub(super) fn measure(
    file: &File,
    path: &Path,
    kind: Kind,
    options: &Options,
) -> Result<Geometry, Error> {
    let own = if kind == Kind::Block { block::logical_sector(file)? } else { 512 };
    let sector_size = options.sector_size.unwrap_or(own);
    if sector_size < own || check_sector_size(Some(sector_size)).is_err() {
        let problem = format!("{} has sectors of {own} bytes", path.display());
        return Err(ConfigError::new("sector size", sector_size, problem).into());
    }
    let size = size(file, path, kind)?;
    check_multiple("image", &path.display(), size, sector_size)?;
    let (physical, discard) = match kind {
        Kind::Block => (block::physical_sector(file)?, block::discard_limits(file)),
        Kind::File => of_file(file, size)?,
    };
    let (hints, zeroes) = match kind {
        Kind::Block => (block::hints(file), block::zeroes(file)),
        Kind::File => (Hints { least: physical, ..Hints::default() }, zeroes(file, size, physical)),
    };
    Ok(Geometry {
        size,
        sector_size,
        physical_sector_size: physical.max(sector_size),
        read_only: options.read_only,
        direct: false,
        discard: discard.filter(|_| !options.read_only),
        zeroes_are_written: !zeroes && !options.read_only,
        hints,
    })
}

/// Whether a file's file system zeroes ranges by itself.
fn zeroes(file: &File, size: u64, block: u32) -> bool {
    // Asked of what lies beyond the end; and taken back, or the file would have a block there.
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (at, len) = (i64::try_from(size).unwrap_or(i64::MAX), i64::from(block));
    let zeroes = fallocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, at, len).is_ok();
    if zeroes {
        let _ = fallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, at, len);
    }
    zeroes
}

/// A file's physical sector and what discards its file system takes.
fn of_file(file: &File, size: u64) -> Result<(u32, Option<DiscardLimits>), HostError> {
    let found = file.metadata().map_err(|error| HostError::from_io("look at the image", &error))?;
    let block = u32::try_from(found.blksize().clamp(512, MOST_PHYSICAL)).unwrap_or(4096);
    // Asked of what lies beyond the end, which changes nothing that is served.
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let beyond = i64::try_from(size).unwrap_or(i64::MAX);
    let punches = fallocate(file, mode, beyond, i64::from(block)).is_ok();
    Ok((block, punches.then_some(DiscardLimits::new(block, false))))
}

#[cfg(test)]
mod tests {
    use super::check_multiple;

    #[test]
    fn sizes_beyond_everything_are_refused_in_words() {
        for (size, words) in [
            (u64::MAX, "more than any image"),
            (0, "no bytes at all"),
            (513, "round the size up to 1024"),
        ] {
            let error = check_multiple("size", &size, size, 512).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(check_multiple("size", &512, 512, 512).is_ok());
    }
}
