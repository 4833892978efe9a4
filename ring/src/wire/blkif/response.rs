//! A response (`struct blkif_response`): the same in all layouts but for the padding at its end.
//!
//! Source: io/blkif.h (RELEASE-4.17).

use core::fmt;

use super::Request;
use crate::wire::{bytes_at, put_at};

/// The answer to one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// The request's.
    pub operation: u8,
    /// What came of it.
    pub status: Status,
}

/// What came of a request (`BLKIF_RSP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Status(pub i16);

impl Status {
    /// `BLKIF_RSP_OKAY`: done.
    pub const OKAY: Self = Self(0);
    /// `BLKIF_RSP_ERROR`: failed.
    pub const ERROR: Self = Self(-1);
    /// `BLKIF_RSP_EOPNOTSUPP`: the backend cannot do such a thing at all.
    pub const NOT_SUPPORTED: Self = Self(-2);

    /// Whether it was done.
    #[inline]
    #[must_use]
    pub const fn is_okay(self) -> bool {
        self.0 == Self::OKAY.0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OKAY => f.write_str("okay"),
            Self::ERROR => f.write_str("I/O error"),
            Self::NOT_SUPPORTED => f.write_str("operation not supported"),
            Self(other) => write!(f, "status {other}"),
        }
    }
}

impl Response {
    /// The answer `status` to `request`.
    #[inline]
    #[must_use]
    pub fn to(request: &Request, status: Status) -> Self {
        Self { id: request.id, operation: request.operation, status }
    }

    #[inline]
    pub(super) fn decode(answer: &[u8]) -> Self {
        let [operation] = bytes_at(answer, 8);
        Self {
            id: u64::from_le_bytes(bytes_at(answer, 0)),
            operation,
            status: Status(i16::from_le_bytes(bytes_at(answer, 10))),
        }
    }

    #[inline]
    pub(super) fn encode(&self, answer: &mut [u8]) {
        put_at(answer, 0, self.id.to_le_bytes());
        put_at(answer, 8, [self.operation]);
        put_at(answer, 10, self.status.0.to_le_bytes());
    }
}
