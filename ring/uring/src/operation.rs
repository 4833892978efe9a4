//! What the kernel can be asked to do, and what it answered.
//!
//! Units: bytes. Source: `io_uring_enter(2)`; `linux/blkdev.h` for the block device's command.

use crate::files::FileId;

/// What is to be done, and to which registered file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Fill the buffers with what the file holds from `offset` on.
    Read {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
    },
    /// Store what the buffers hold at `offset` in the file.
    Write {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
    },
    /// Fill the buffers with one packet of a file that has packets, such as a TAP or a packet
    /// socket, as soon as one is there; a result that is short is a packet's. Those of one file complete
    /// in the order of its packets. Such a file is registered by
    /// [`add_packets`](crate::Ring::add_packets).
    Receive {
        /// The file.
        file: FileId,
    },
    /// Hand what the buffers hold to such a file as one packet, if it takes one: `EAGAIN` where it
    /// does not, at once. A kernel that does not know of a file how to do that at once (before 6.4, of a
    /// TAP) waits for room in the ring.
    Send {
        /// The file.
        file: FileId,
    },
    /// `fdatasync(2)`.
    Sync {
        /// The file.
        file: FileId,
    },
    /// `fallocate(2)`.
    Allocate {
        /// The file.
        file: FileId,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Discard of a block device's bytes (`BLOCK_URING_CMD_DISCARD`, Linux 6.12).
    Discard {
        /// The block device.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
}

impl Operation {
    /// Whether it moves one packet, which is never tried again or resumed.
    pub(crate) const fn is_of_a_packet(&self) -> bool {
        matches!(self, Self::Receive { .. } | Self::Send { .. })
    }
}

/// An operation that is over.
#[derive(Debug)]
pub struct Completed<T> {
    /// What was handed in with it.
    pub held: T,
    /// What was asked for, as it was handed in.
    pub operation: Operation,
    /// Bytes moved, or a positive `errno`. A read or a write that the kernel cut short was resumed, so
    /// that fewer bytes than were asked for mean that the file ends there.
    pub result: Result<u64, i32>,
}

/// io_uring cannot be had here, or not all of it that is needed; there are other ways to do I/O.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("io_uring is not to be had: {doing}: {}", std::io::Error::from_raw_os_error(*.errno))]
pub struct Unavailable {
    /// What was being done.
    pub doing: &'static str,
    /// The kernel's reason, a positive `errno`: `ENOSYS` where the kernel has none, `EPERM` where
    /// `kernel.io_uring_disabled` or a seccomp filter forbids it, `ENOMEM` where the limit on
    /// locked memory is too low, `EINVAL` where the kernel is older than 6.1.
    pub errno: i32,
}

impl Unavailable {
    pub(crate) fn new(doing: &'static str, error: &std::io::Error) -> Self {
        Self { doing, errno: errno_of(error) }
    }
}

/// The number of an error that the kernel gave.
pub(crate) fn errno_of(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
