//! Cuts a packet into segments, for an end that takes none that are to be cut.
//!
//! Each segment has the packet's headers, with lengths, sequence number, flags, IPv4 identification
//! and checksums of its own: FIN and PSH go with the last one, CWR with the first. UDP is cut into
//! datagrams. The transport checksum is left blank, so that a segment goes the way of any other packet.
//!
//! Who cuts goes by the packet's own length, and IP's word for it may be another, such as none at all in
//! a packet that was never to be sent whole: [`say_length`] makes IP say what is there.
//!
//! Source: RFC 9293 section 3.1, RFC 768, RFC 791, RFC 3168 section 6.1.2. Units: bytes.

use super::headers::{self, Addresses, ETHERNET, Headers, IPV6, Protocol, TAG, Transport};
use super::transport::{Checksum, NoChecksum, complete_ipv4};

/// In TCP's byte 13.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet on its way to be segments.
#[derive(Clone, Debug)]
pub struct Cut<'a> {
    front: &'a [u8],
    payload: &'a [u8],
    size: usize,
    ip: usize,
    addresses: Addresses,
    transport: Transport,
}

impl<'a> Cut<'a> {
    /// `packet` in segments of `size` bytes of payload at most.
    ///
    /// # Errors
    ///
    /// It is no whole TCP or UDP.
    pub fn new(packet: &'a [u8], size: u16) -> Result<Self, NoChecksum> {
        let headers = Headers::find(packet)?;
        let none = NoChecksum::NoTransport { ether_type: headers.ether_type };
        let ip = headers.ip.ok_or(none)?;
        let transport = ip.transport.ok_or(none)?;
        let front = packet.get(..transport.payload).ok_or(none)?;
        let payload = packet.get(transport.payload..ip.end).ok_or(none)?;
        let size = usize::from(size).max(1);
        Ok(Self { front, payload, size, ip: ip.at, addresses: ip.addresses, transport })
    }

    /// How many there are: one at least.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// How long segment `n` is; `None` behind the last one.
    #[must_use]
    pub fn len(&self, n: usize) -> Option<usize> {
        Some(self.front.len().saturating_add(self.piece(n)?.len()))
    }

    /// Whether there is nothing but headers.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    /// Writes segment `n` into `room`, which has its [length](Self::len), and says where its blank
    /// checksum is. `None` where there is no such segment, or where it is no packet of its own.
    pub fn write(&self, n: usize, room: &mut [u8]) -> Option<Checksum> {
        let piece = self.piece(n)?;
        let (head, body) = room.split_at_mut_checked(self.front.len())?;
        if body.len() != piece.len() {
            return None;
        }
        head.copy_from_slice(self.front);
        body.copy_from_slice(piece);
        self.finish(n, room)
    }

    fn piece(&self, n: usize) -> Option<&'a [u8]> {
        if n >= self.segments() {
            return None;
        }
        let from = n.checked_mul(self.size)?;
        self.payload.get(from..from.saturating_add(self.size).min(self.payload.len()))
    }

    /// Makes a copy of the headers segment `n`'s own.
    fn finish(&self, n: usize, packet: &mut [u8]) -> Option<Checksum> {
        let of_ip = u16::try_from(packet.len().checked_sub(self.ip)?).ok()?;
        match self.addresses {
            Addresses::V4(_) => {
                put(packet, self.ip.checked_add(2)?, of_ip.to_be_bytes())?;
                let at = self.ip.checked_add(4)?;
                let id = headers::word(packet, at)?.wrapping_add(n as u16);
                put(packet, at, id.to_be_bytes())?;
            }
            // The header itself does not count.
            Addresses::V6(_) => {
                let len = of_ip.checked_sub(IPV6 as u16)?;
                put(packet, self.ip.checked_add(4)?, len.to_be_bytes())?;
            }
        }
        let at = self.transport.at;
        match self.transport.protocol {
            Protocol::Tcp => {
                let number: [u8; 4] = *packet.get(at.checked_add(4)?..)?.first_chunk()?;
                let before = n.checked_mul(self.size)? as u32;
                let number = u32::from_be_bytes(number).wrapping_add(before);
                put(packet, at.checked_add(4)?, number.to_be_bytes())?;
                let last = n.checked_add(1)? == self.segments();
                let flags = packet.get_mut(at.checked_add(13)?)?;
                *flags &= if last { u8::MAX } else { !(FIN | PSH) };
                *flags &= if n == 0 { u8::MAX } else { !CWR };
            }
            Protocol::Udp => {
                let len = u16::try_from(packet.len().checked_sub(at)?).ok()?;
                put(packet, at.checked_add(4)?, len.to_be_bytes())?;
            }
        }
        let headers = Headers::find(packet).ok()?;
        complete_ipv4(packet, &headers);
        let checksum = Checksum::of(packet, &headers).ok()?;
        checksum.leave_blank(packet);
        Some(checksum)
    }
}

/// Makes IP say that a packet of `size` bytes, which begins with `head`, ends where it does. One that is
/// too long for that, or is no IP as far as its first header, is left as it is.
#[inline]
pub fn say_length(head: &mut [u8], size: usize) {
    let Some((v4, ip)) = network(head) else { return };
    let before = if v4 { ip } else { ip.saturating_add(IPV6) };
    let Some(len) = size.checked_sub(before).and_then(|len| u16::try_from(len).ok()) else {
        return;
    };
    let at = ip.saturating_add(if v4 { 2 } else { 4 });
    if headers::word(head, at) == Some(len) || put(head, at, len.to_be_bytes()).is_none() || !v4 {
        return;
    }
    if let Ok(headers) = Headers::find_in(head, size) {
        complete_ipv4(head, &headers);
    }
}

/// Where IP begins, and whether it is IPv4.
fn network(packet: &[u8]) -> Option<(bool, usize)> {
    let mut at = ETHERNET;
    for _ in 0..=headers::MOST_TAGS {
        match headers::word(packet, at.checked_sub(2)?)? {
            headers::ether_type::IPV4 => return Some((true, at)),
            headers::ether_type::IPV6 => return Some((false, at)),
            tag if headers::ether_type::TAGS.contains(&tag) => at = at.checked_add(TAG)?,
            _ => return None,
        }
    }
    None
}

fn put<const N: usize>(packet: &mut [u8], at: usize, bytes: [u8; N]) -> Option<()> {
    *packet.get_mut(at..)?.first_chunk_mut()? = bytes;
    Some(())
}

#[cfg(test)]
mod tests;
