//! Cuts a packet into segments, for a guest that takes none that are to be cut.
//!
//! Each segment has the packet's headers, with lengths, sequence number, flags, IPv4 identification
//! and checksums of its own: FIN and PSH go with the last one, CWR with the first. UDP is cut into
//! datagrams.
//!
//! Before: [`offload`](crate::offload). After: `rx::take`. Source: RFC 9293 section 3.1, RFC 768,
//! RFC 791, RFC 3168 section 6.1.2. Units: bytes.

use ring::packet::transport::{Checksum, complete_ipv4};
use ring::packet::{Addresses, Headers, Protocol};

use crate::buffer::{Buffer, Pool};
use crate::stats::Loss;
use crate::vnet::{Header, flags};

/// In TCP's byte 13.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

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
    let packet = whole.packet();
    let headers = Headers::find(packet)?;
    let ip = headers.ip.as_ref().ok_or(Loss::NoTransport)?;
    let transport = ip.transport.ok_or(Loss::NoTransport)?;
    let front = packet.get(..transport.payload).ok_or(Loss::Headers)?;
    let payload = packet.get(transport.payload..ip.end).ok_or(Loss::Headers)?;
    let size = usize::from(size).max(1);
    let pieces = payload.len().div_ceil(size).max(1);
    for n in 0..pieces {
        let from = n.saturating_mul(size);
        let to = from.saturating_add(size).min(payload.len());
        let piece = payload.get(from..to).ok_or(Loss::Headers)?;
        if pool.available() <= spare {
            return Err(Loss::NoMemory);
        }
        let mut buffer = pool.take().ok_or(Loss::NoMemory)?;
        buffer.set_len(front.len().saturating_add(piece.len()));
        let made = fill(&mut buffer, front, piece).and_then(|()| {
            let place = Place { at: ip.at, addresses: &ip.addresses, transport: transport.at };
            let (first, last) = (n == 0, n.saturating_add(1) == pieces);
            finish(&mut buffer, &place, transport.protocol, Turn { n, from, first, last })
        });
        if made.is_none() {
            pool.put(buffer);
            return Err(Loss::Headers);
        }
        each(buffer);
    }
    Ok(())
}

/// Where the headers are.
struct Place<'a> {
    at: usize,
    addresses: &'a Addresses,
    transport: usize,
}

/// Which segment it is.
#[derive(Clone, Copy)]
struct Turn {
    n: usize,
    /// Bytes of payload before it.
    from: usize,
    first: bool,
    last: bool,
}

fn fill(buffer: &mut Buffer, front: &[u8], piece: &[u8]) -> Option<()> {
    let (head, body) = buffer.packet_mut().split_at_mut_checked(front.len())?;
    head.copy_from_slice(front);
    body.get_mut(..piece.len())?.copy_from_slice(piece);
    Some(())
}

/// Makes a copy of the headers this segment's own.
fn finish(buffer: &mut Buffer, place: &Place<'_>, protocol: Protocol, turn: Turn) -> Option<()> {
    let packet = buffer.packet_mut();
    let of_ip = u16::try_from(packet.len().checked_sub(place.at)?).ok()?;
    match place.addresses {
        Addresses::V4(_) => {
            put(packet, place.at.checked_add(2)?, of_ip.to_be_bytes())?;
            let id = u16::from_be_bytes(get(packet, place.at.checked_add(4)?)?);
            let id = id.wrapping_add(turn.n as u16);
            put(packet, place.at.checked_add(4)?, id.to_be_bytes())?;
        }
        // The header itself does not count.
        Addresses::V6(_) => {
            let len = of_ip.checked_sub(40)?;
            put(packet, place.at.checked_add(4)?, len.to_be_bytes())?;
        }
    }
    match protocol {
        Protocol::Tcp => {
            let at = place.transport.checked_add(4)?;
            let sequence = u32::from_be_bytes(get(packet, at)?);
            put(packet, at, sequence.wrapping_add(turn.from as u32).to_be_bytes())?;
            let flags = packet.get_mut(place.transport.checked_add(13)?)?;
            *flags &= if turn.last { u8::MAX } else { !(FIN | PSH) };
            *flags &= if turn.first { u8::MAX } else { !CWR };
        }
        Protocol::Udp => {
            let len = u16::try_from(packet.len().checked_sub(place.transport)?).ok()?;
            put(packet, place.transport.checked_add(4)?, len.to_be_bytes())?;
        }
    }
    let headers = Headers::find(packet).ok()?;
    complete_ipv4(packet, &headers);
    let checksum = Checksum::of(packet, &headers).ok()?;
    checksum.leave_blank(packet);
    let header = Header {
        flags: flags::NEEDS_CSUM,
        csum_start: u16::try_from(checksum.start).ok()?,
        csum_offset: u16::try_from(checksum.offset).ok()?,
        ..Header::default()
    };
    buffer.set_header(&header);
    Some(())
}

fn get<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..)?.first_chunk().copied()
}

fn put<const N: usize>(packet: &mut [u8], at: usize, bytes: [u8; N]) -> Option<()> {
    *packet.get_mut(at..)?.first_chunk_mut()? = bytes;
    Some(())
}

#[cfg(test)]
mod tests;
