//! What may be asked of a disk, and what comes back.
//!
//! The stage before is the caller; the stage after is [`Queue::submit`](crate::Queue::submit). A request owns its
//! buffer from the moment it is taken until its [`Completion`] gives the buffer back, so nothing a
//! backend does late can reach memory that was since used for something else. Offsets and lengths
//! are bytes here, and must be whole sectors of the disk.

use core::fmt;

use crate::buffer::Buffer;
use crate::device::Ending;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Fill the buffer from the disk.
    Read,
    /// Write the buffer to the disk.
    Write,
    /// Put every write that completed before onto stable storage.
    Flush,
    /// Let go of a range: the disk may forget what is there.
    Discard {
        /// How many bytes.
        len: u64,
        /// Whether every copy of them must become unrecoverable.
        secure: bool,
    },
}

/// One thing to be done, with the memory it needs.
#[derive(Debug)]
pub struct Request<B> {
    /// What.
    pub operation: Operation,
    /// Where it begins, in bytes; no meaning for a flush.
    pub offset: u64,
    /// From or into which memory; empty where there is none to move.
    pub buffer: B,
    /// The caller's own name for it, given back untouched.
    pub tag: u64,
}

impl<B: Buffer> Request<B> {
    /// Reads as many bytes as `buffer` holds.
    pub fn read(offset: u64, buffer: B, tag: u64) -> Self {
        Self { operation: Operation::Read, offset, buffer, tag }
    }

    /// Writes all of `buffer`.
    pub fn write(offset: u64, buffer: B, tag: u64) -> Self {
        Self { operation: Operation::Write, offset, buffer, tag }
    }

    /// Flushes; `nothing` is an empty buffer.
    pub fn flush(nothing: B, tag: u64) -> Self {
        Self { operation: Operation::Flush, offset: 0, buffer: nothing, tag }
    }

    /// Discards `len` bytes; `nothing` is an empty buffer.
    pub fn discard(offset: u64, len: u64, nothing: B, tag: u64) -> Self {
        let operation = Operation::Discard { len, secure: false };
        Self { operation, offset, buffer: nothing, tag }
    }

    /// How many bytes of the disk it is about.
    pub fn len(&self) -> u64 {
        match self.operation {
            Operation::Read | Operation::Write => self.buffer.len() as u64,
            Operation::Flush => 0,
            Operation::Discard { len, .. } => len,
        }
    }

    /// Whether it is about no byte of the disk, as a flush is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a request ended, with its memory given back.
#[derive(Debug)]
#[must_use = "a completion says whether the data is good"]
pub struct Completion<B> {
    /// What was asked.
    pub request: Request<B>,
    /// What came of it. After an error, what a read left in the buffer means nothing.
    pub result: Result<(), IoError>,
}

/// Why a request was not, or not wholly, done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The backend tried and failed.
    #[error("the backend reports an I/O error")]
    Failed,
    /// The backend does not do this (any more).
    #[error("the backend does not support this operation")]
    Unsupported,
    /// The disk was taken away.
    #[error("the disk was detached")]
    Detached,
    /// The backend broke the protocol, so nothing it says counts.
    #[error("the backend broke the protocol")]
    Untrusted,
}

impl IoError {
    /// With what the requests end that a disk's end finds.
    #[must_use]
    pub fn of(ending: &Ending) -> Self {
        match ending {
            Ending::Fault(_) => Self::Untrusted,
            _ => Self::Detached,
        }
    }
}

/// Why a request was not even begun.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// As many requests as the queue has room for are under way. Take completions, then try again.
    Full,
    /// The offset or the length is no multiple of the sector size, which is given, in bytes.
    Unaligned(u32),
    /// It reaches past the end of the disk, whose size is given, in bytes.
    PastEnd(u64),
    /// It moves no byte.
    Empty,
    /// The disk may only be read.
    ReadOnly,
    /// The disk cannot do this.
    Unsupported,
    /// The queue was not connected yet, so what it can do is not known.
    NotConnected,
    /// The disk was taken away or failed for good.
    Detached,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the queue is full"),
            Self::Unaligned(sector) => {
                write!(
                    f,
                    "offset and length must be multiples of the disk's sectors of {sector} bytes"
                )
            }
            Self::PastEnd(size) => write!(f, "it reaches past the end of the disk at {size} bytes"),
            Self::Empty => f.write_str("it is about no bytes"),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::Unsupported => f.write_str("the disk does not support this operation"),
            Self::NotConnected => f.write_str("the disk is not connected yet"),
            Self::Detached => f.write_str("the disk was detached"),
        }
    }
}

impl core::error::Error for Reason {}

/// A request that was not begun, given back.
#[derive(Debug)]
pub struct Rejected<B> {
    /// What was asked.
    pub request: Request<B>,
    /// Why not.
    pub reason: Reason,
}
