//! What a block device says of itself and does on request.
//!
//! Sources: `linux/fs.h` (ioctl numbers), the kernel's `Documentation/ABI/stable/sysfs-block`.
#![expect(unsafe_code, reason = "ioctl takes raw pointers")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use hypervisor::HostError;

use crate::image::{DiscardLimits, Hints};

mod request {
    nix::ioctl_read!(size, 0x12, 114, u64);
    nix::ioctl_read_bad!(logical_sector, 0x1268, libc::c_int);
    nix::ioctl_read_bad!(physical_sector, 0x127b, libc::c_uint);
    nix::ioctl_read_bad!(read_only, 0x125e, libc::c_int);
    nix::ioctl_read_bad!(least, 0x1278, libc::c_uint);
    nix::ioctl_read_bad!(best, 0x1279, libc::c_uint);
    nix::ioctl_read_bad!(alignment, 0x127a, libc::c_int);
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

/// Which transfers suit it (`BLKIOMIN`, `BLKIOOPT`, `BLKALIGNOFF`), as far as it says.
pub(super) fn hints(device: &File) -> Hints {
    let (mut least, mut best, mut alignment) = (0, 0, 0);
    let device = device.as_raw_fd();
    // SAFETY: the descriptor is open, and the request writes one unsigned int.
    let _ = unsafe { request::least(device, &raw mut least) };
    // SAFETY: as above.
    let _ = unsafe { request::best(device, &raw mut best) };
    // SAFETY: the descriptor is open, and the request writes one int, which is -1 where nothing is aligned.
    let _ = unsafe { request::alignment(device, &raw mut alignment) };
    Hints { alignment: u32::try_from(alignment).unwrap_or(0), least, best }
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

/// What the kernel says of the device in its folder in sysfs.
struct Folder(String);

impl Folder {
    fn of(device: &File) -> Option<Self> {
        let number = device.metadata().ok()?.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        Some(Self(format!("/sys/dev/block/{major}:{minor}")))
    }

    fn read(&self, name: &str) -> Option<u64> {
        std::fs::read_to_string(format!("{}/{name}", self.0)).ok()?.trim().parse().ok()
    }

    /// A partition has no queue of its own; its disk's folder is the one above.
    fn of_queue(&self, name: &str) -> Option<u64> {
        self.read(&format!("queue/{name}")).or_else(|| self.read(&format!("../queue/{name}")))
    }
}

/// What discards it takes, from the queue it belongs to.
pub(super) fn discard_limits(device: &File) -> Option<DiscardLimits> {
    let folder = Folder::of(device)?;
    let granularity = folder.of_queue("discard_granularity").filter(|&bytes| bytes > 0)?;
    folder.of_queue("discard_max_bytes").filter(|&bytes| bytes > 0)?;
    let alignment = folder.read("discard_alignment").unwrap_or(0);
    // A range that ends within a sector is never erased: a device that could erase says that the
    // range is wrong, one that could not says that before it looks at the range.
    let secure = discard(device, 1, 1, true) == Err(libc::EINVAL);
    Some(DiscardLimits {
        granularity: u32::try_from(granularity).ok()?,
        alignment: u32::try_from(alignment).unwrap_or(0),
        secure,
    })
}

/// Whether it zeroes ranges by itself.
pub(super) fn zeroes(device: &File) -> bool {
    let most = Folder::of(device).and_then(|folder| folder.of_queue("write_zeroes_max_bytes"));
    most.is_some_and(|bytes| bytes > 0)
}
