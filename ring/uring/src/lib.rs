//! Our ring with the kernel: owned operations over io_uring.
//!
//! A backend's thread has one [`Ring`]. It begins operations on registered files ([`FileId`]), each
//! together with a value that keeps the memory involved alive ([`Buffers`]); the value moves into the
//! ring and comes back with the result. The same ring watches descriptors, so that one system call
//! waits for the medium and for the peer.
//!
//! Nobody is trusted with memory but the implementor of [`Buffers`], who vouches for what it names.
//! Units: bytes; errors are positive `errno` values.

mod buffers;
mod files;
mod operation;
mod ring;
mod slots;
mod watches;

pub use buffers::{Buffers, Piece};
pub use files::FileId;
pub use operation::{Completed, Operation, Unavailable};
pub use ring::Ring;
pub use watches::WatchId;
