//! The block protocol.
//!
//! A request leaves its slot as a [`Request`]; what it claims (sectors, segments, grants) is as yet
//! unchecked, and only counts that bound our own arrays are dealt with here. Positions and lengths
//! on the disk, and positions in a page, are in sectors of 512 bytes whatever the disk's own.
//!
//! Three layouts exist, because a 32-bit x86 guest aligns 64-bit fields to 4 bytes; which one a
//! frontend speaks it says in the store ([`Abi`]). Integers are little-endian on all.
//!
//! Source: `xen/include/public/io/blkif.h` and `io/protocols.h`, RELEASE-4.17.

mod indirect;
mod layouts;
mod request;
mod response;

use core::marker::PhantomData;

use crate::Protocol;

pub use indirect::{Indirect, SEGMENTS_PER_PAGE, encode_segments, pages_for, segments};
pub use layouts::{Abi, Layout, Native, X86_32, X86_64};
pub use request::{Discard, Kind, Request, Segment, Segments, Transfer};
pub use response::{Response, Status};

/// Bytes in the sectors that requests count in.
pub const SECTOR_SIZE: usize = 512;

/// Sectors in a page.
pub const SECTORS_PER_PAGE: u8 = 8;

/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const MAX_SEGMENTS: usize = 11;

/// `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const MAX_INDIRECT_PAGES: usize = 8;

/// The operations (`BLKIF_OP_*`).
pub mod operation {
    /// `BLKIF_OP_READ`.
    pub const READ: u8 = 0;
    /// `BLKIF_OP_WRITE`.
    pub const WRITE: u8 = 1;
    /// `BLKIF_OP_WRITE_BARRIER`.
    pub const WRITE_BARRIER: u8 = 2;
    /// `BLKIF_OP_FLUSH_DISKCACHE`.
    pub const FLUSH_DISKCACHE: u8 = 3;
    /// `BLKIF_OP_DISCARD`.
    pub const DISCARD: u8 = 5;
    /// `BLKIF_OP_INDIRECT`.
    pub const INDIRECT: u8 = 6;
}

/// `BLKIF_DISCARD_SECURE`, in the flag of a discard.
pub const DISCARD_SECURE: u8 = 1 << 0;

/// A block ring in layout `L`.
#[derive(Debug)]
pub struct Blkif<L = Native>(PhantomData<fn() -> L>);

impl<L: Layout> Protocol for Blkif<L> {
    type Request = Request;
    type Response = Response;
    type Slot = L::Slot;
    type Answer = L::Answer;

    #[inline]
    fn decode_request(slot: &L::Slot) -> Request {
        Request::decode::<L>(slot.as_ref())
    }

    #[inline]
    fn encode_request(request: &Request, slot: &mut L::Slot) {
        request.encode::<L>(slot.as_mut());
    }

    #[inline]
    fn decode_response(answer: &L::Answer) -> Response {
        Response::decode(answer.as_ref())
    }

    #[inline]
    fn encode_response(response: &Response, answer: &mut L::Answer) {
        response.encode(answer.as_mut());
    }
}

#[cfg(test)]
mod tests;
