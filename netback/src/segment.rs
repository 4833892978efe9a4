//! Cuts a packet into segments, for a guest that takes none that are to be cut.
//!
//! How, is in [`ring::packet::segment`]; here each segment gets a buffer of its own and the header that
//! says that its checksum is blank.
//!
//! Before: [`offload`](crate::offload). After: `rx::take`. Units: bytes.

use ring::packet::segment::Cut;

use crate::buffer::{Buffer, Pool};
use crate::stats::Loss;
use crate::vnet::{Header, flags};

/// Calls `each` with the segments of `whole`, of `size` bytes of payload at most, in order. The
/// checksum of each is blank, as its header says, so that it goes the way of any other packet. Leaves
/// `spare` buffers in the pool, for what the guest sends.
///
/// # Errors
///
/// It is no TCP or UDP, or there are no buffers left; then `each` was called with fewer.
pub fn cut(
    whole: &Buffer,
    size: u16,
    (pool, spare): (&mut Pool, usize),
    mut each: impl FnMut(Buffer),
) -> Result<(), Loss> {
    let cut = Cut::new(whole.packet(), size)?;
    for n in 0..cut.segments() {
        if pool.available() <= spare {
            return Err(Loss::NoMemory);
        }
        let mut buffer = pool.take().ok_or(Loss::NoMemory)?;
        if fill(&mut buffer, &cut, n).is_none() {
            pool.put(buffer);
            return Err(Loss::Headers);
        }
        each(buffer);
    }
    Ok(())
}

fn fill(buffer: &mut Buffer, cut: &Cut<'_>, n: usize) -> Option<()> {
    buffer.set_len(cut.len(n)?);
    let checksum = cut.write(n, buffer.packet_mut())?;
    let header = Header {
        flags: flags::NEEDS_CSUM,
        csum_start: u16::try_from(checksum.start).ok()?,
        csum_offset: u16::try_from(checksum.offset).ok()?,
        ..Header::default()
    };
    buffer.set_header(&header);
    Some(())
}

#[cfg(test)]
mod tests;
