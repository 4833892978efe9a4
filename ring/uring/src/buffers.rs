//! What an operation reads into or writes from.
#![expect(unsafe_code, reason = "whoever implements the trait vouches for raw addresses")]

/// A run of bytes in this process's address space, perhaps shared with another domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first byte.
    pub base: *mut u8,
    /// Bytes from there on.
    pub len: u32,
    /// The registered buffer that the bytes lie in, where there is one. Nothing but speed hangs
    /// on it: an engine that has no registered buffers takes no notice.
    pub fixed: Option<u16>,
}

/// Something that keeps memory alive for as long as an operation uses it.
///
/// # Safety
///
/// The bytes that [`pieces`](Self::pieces) names must stay mapped and readable, and no Rust
/// reference to them may exist, until `self` is dropped, wherever `self` is moved meanwhile; and
/// it must always name the same ones. Where `self` is handed in to be filled, the bytes must be
/// writable too.
pub unsafe trait Buffers {
    /// The bytes, in the order in which they lie on the medium. Empty where none are needed.
    fn pieces(&self) -> &[Piece];
}
