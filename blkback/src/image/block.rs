//! What a block device says of itself and does on request.
//!
//! Sources: `linux/fs.h` (ioctl numbers), the kernel's `Documentation/ABI/stable/sysfs-block`.
#![expect(unsafe_code, reason = "ioctl takes raw pointers")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use hypervisor::HostError;

use crate::image::DiscardLimits;

mod request {
    nix::ioctl_read!(size, 0x12, 114, u64);
    nix::ioctl_read_bad!(logical_sector, 0x1268, libc::c_int);
    nix::ioctl_read_bad!(physical_sector, 0x127b, libc::c_uint);
    nix::ioctl_read_bad!(read_only, 0x125e, libc::c_int);
    nix::ioctl_write_ptr_bad!(discard, 0x1277, [u64; 2]);
    nix::ioctl_write_ptr_bad!(secure_discard, 0x127d, [u64; 2]);
}

/// Its size in bytes (`BLKGETSIZE64`).
pub(super) fn size(device: &File) -> Result<u64, HostError> {
    let mut size = 0;
    // SAFETY: the descriptor is open, and the request writes one u64.
    let asked = unsafe { request::size(device.as_raw_fd(), &raw mut size) };
    asked.map_err(|errno| HostError::new("ask a block device for its size", errno as i32))?;
    Ok(size)
}

/// The least it reads or writes, in bytes (`BLKSSZGET`).
pub(super) fn logical_sector(device: &File) -> Result<u32, HostError> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the request writes one int.
    let asked = unsafe { request::logical_sector(device.as_raw_fd(), &raw mut bytes) };
    asked.map_err(|errno| HostError::new("ask a block device for its sector", errno as i32))?;
    Ok(bytes.unsigned_abs())
}

/// What it writes as a whole, in bytes (`BLKPBSZGET`).
pub(super) fn physical_sector(device: &File) -> Result<u32, HostError> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the request writes one unsigned int.
    let asked = unsafe { request::physical_sector(device.as_raw_fd(), &raw mut bytes) };
    asked.map_err(|errno| HostError::new("ask a block device for its block", errno as i32))?;
    Ok(bytes)
}

/// Whether it takes no writes (`BLKROGET`), which opening it for writing need not tell.
pub(super) fn is_read_only(device: &File) -> Result<bool, HostError> {
    let mut read_only = 0;
    // SAFETY: the descriptor is open, and the request writes one int.
    let asked = unsafe { request::read_only(device.as_raw_fd(), &raw mut read_only) };
    asked.map_err(|errno| HostError::new("ask a block device for writing", errno as i32))?;
    Ok(read_only != 0)
}

/// Discards `len` bytes from `offset` on (`BLKDISCARD`, `BLKSECDISCARD`). May take long.
///
/// # Errors
///
/// A positive `errno`; `EOPNOTSUPP` where the device has no such thing.
pub fn discard(device: &File, offset: u64, len: u64, secure: bool) -> Result<(), i32> {
    let range = [offset, len];
    let done = if secure {
        // SAFETY: the descriptor is open, and the request reads two u64.
        unsafe { request::secure_discard(device.as_raw_fd(), &raw const range) }
    } else {
        // SAFETY: as above.
        unsafe { request::discard(device.as_raw_fd(), &raw const range) }
    };
    done.map(drop).map_err(|errno| errno as i32)
}

/// What discards it takes, from the queue it belongs to.
pub(super) fn discard_limits(device: &File) -> Option<DiscardLimits> {
    let number = device.metadata().ok()?.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let own = format!("/sys/dev/block/{major}:{minor}");
    let read =
        |path: String| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    // A partition has no queue of its own; its disk's folder is the one above.
    let of_queue = |name: &str| {
        read(format!("{own}/queue/{name}")).or_else(|| read(format!("{own}/../queue/{name}")))
    };
    let granularity = of_queue("discard_granularity").filter(|&bytes| bytes > 0)?;
    of_queue("discard_max_bytes").filter(|&bytes| bytes > 0)?;
    let alignment = read(format!("{own}/discard_alignment")).unwrap_or(0);
    // A range that ends within a sector is never erased: a device that could erase says that the
    // range is wrong, one that could not says that before it looks at the range.
    let secure = discard(device, 1, 1, true) == Err(libc::EINVAL);
    Some(DiscardLimits {
        granularity: u32::try_from(granularity).ok()?,
        alignment: u32::try_from(alignment).unwrap_or(0),
        secure,
    })
}
