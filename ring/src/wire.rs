//! The messages that travel on rings, one file a message.
//!
//! Each is a plain value with the offsets of its fields in every layout; each is tested against the
//! public header that defines it.

pub mod blkif;
pub mod netif;
pub mod virtio_blk;
pub mod virtio_net;

/// The `N` bytes at `offset`; zeroes where there are none.
#[inline]
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

/// Writes `value` at `offset`, where there is room.
#[inline]
fn put_at<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    if let Some(room) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *room = value;
    }
}
