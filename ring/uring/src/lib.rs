//! Our ring with the kernel: owned operations over io_uring.

mod buffers;

pub use buffers::{Buffers, Piece};
