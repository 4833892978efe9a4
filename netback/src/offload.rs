//! What is left to others of a packet, between the two ways of saying so: the guest's, in the slots
//! of its rings, and the port's, in the header in front of the packet.
//!
//! Whoever is to complete a checksum finds it where this module found it, not where a peer says it
//! is, and the sum of the pseudo-header in its place is this module's own. What the other side does not
//! do is done here: checksums are completed, and [`segment`](crate::segment) cuts.
//!
//! Before: `validate` and `rx::take`. Trust: a guest's packet may claim anything; a port's header is
//! the host's, and still checked, for a memory port's comes from another guest. Units: bytes.

use ring::packet::segment::say_length;
use ring::packet::transport::Checksum as Place;
use ring::packet::{Addresses, Headers, Protocol, Sum};
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::extra::{Gso, GsoProtocol};
use ring::wire::netif::fit::Takes;

use crate::buffer::Buffer;
use crate::stats::Loss;
use crate::vnet::{self, flags, gso};

/// The least payload of a segment: what TCP has left under the least MTU of IPv4, 68, with options.
/// Less would have the host make thousands of packets of one.
pub const LEAST_SEGMENT: u16 = 16;

/// Which blank checksums a frontend takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sums {
    /// Over IPv4, which it does unless it says `feature-no-csum-offload`.
    pub v4: bool,
    /// Over IPv6, where it says `feature-ipv6-csum-offload`.
    pub v6: bool,
}

/// What is to become of a packet for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inbound {
    /// It goes as it is, and this is said of it. The flag is whether its checksum was completed here.
    Whole(Offload, bool),
    /// It is to be cut into segments of that much payload first.
    Cut(u16),
}

/// What the port is told of a packet that the guest sent and said `offload` of. Where a checksum is
/// left to others, the sum in its place is made anew.
///
/// # Errors
///
/// There is no such checksum, or no such segments.
#[inline]
pub fn to_port(
    packet: &mut [u8],
    headers: Option<&Headers>,
    offload: &Offload,
) -> Result<vnet::Header, Loss> {
    let mut header = vnet::Header::default();
    match (offload.checksum, offload.gso) {
        (Checksum::Unchecked, None) => return Ok(header),
        (Checksum::Validated, None) => {
            header.flags = flags::DATA_VALID;
            return Ok(header);
        }
        _ => {}
    }
    let headers = headers.ok_or(Loss::Headers)?;
    let place = Place::of(packet, headers)?;
    if let Some(asked) = offload.gso {
        let transport = headers.transport().ok_or(Loss::NoTransport)?;
        header.gso_type = match (asked.protocol(), family(headers), transport.protocol) {
            (Some(GsoProtocol::TcpV4), Some(Family::V4), Protocol::Tcp) => gso::TCPV4,
            (Some(GsoProtocol::TcpV6), Some(Family::V6), Protocol::Tcp) => gso::TCPV6,
            _ => return Err(Loss::Segments),
        };
        if asked.size < LEAST_SEGMENT {
            return Err(Loss::Segments);
        }
        header.gso_size = asked.size;
        header.hdr_len = position(transport.payload)?;
    }
    header.flags = flags::NEEDS_CSUM;
    header.csum_start = position(place.start)?;
    header.csum_offset = position(place.offset)?;
    place.leave_blank(packet);
    Ok(header)
}

/// What is to become of the packet in `buffer`, which came from the port, for a guest that takes
/// `takes` and `sums`.
///
/// # Errors
///
/// Its header says what cannot be.
#[inline]
pub fn from_port(buffer: &mut Buffer, takes: &Takes, sums: Sums) -> Result<Inbound, Loss> {
    let header = buffer.header();
    let kind = header.gso_type & !gso::ECN;
    if header.flags & flags::NEEDS_CSUM == 0 {
        if kind != gso::NONE {
            return Err(Loss::PortHeader);
        }
        let valid = header.flags & flags::DATA_VALID != 0;
        let checksum = if valid { Checksum::Validated } else { Checksum::Unchecked };
        return Ok(Inbound::Whole(Offload { checksum, ..Offload::default() }, false));
    }
    if kind != gso::NONE {
        // The host's kernel cuts by a packet's own length, and leaves IP's unread.
        let size = buffer.len();
        say_length(buffer.packet_mut(), size);
    }
    let headers = Headers::find(buffer.packet()).ok();
    let family = headers.as_ref().and_then(family);
    // What a frontend says that it takes, Linux's (v6.1) takes of IP right behind the Ethernet header:
    // with a VLAN tag between the two it drops what is not complete.
    let tagged = headers.as_ref().is_some_and(|headers| headers.tags > 0);
    let [gso_tcpv4, gso_tcpv6] = [takes.gso_tcpv4, takes.gso_tcpv6].map(|takes| takes && !tagged);
    let place = headers.as_ref().and_then(|headers| Place::of(buffer.packet(), headers).ok());
    // What the frontend would complete is the outermost TCP or UDP; what is meant may be another, in
    // a tunnel.
    let same = place.as_ref().is_some_and(|place| {
        (place.start, place.offset)
            == (usize::from(header.csum_start), usize::from(header.csum_offset))
    });
    let tcp = place.as_ref().is_some_and(|place| place.protocol() == Protocol::Tcp);
    let asked = match kind {
        gso::NONE => None,
        gso::TCPV4 | gso::TCPV6 | gso::UDP_L4 if !same => return Err(Loss::Tunnel),
        gso::TCPV4 | gso::TCPV6 if !tcp => return Err(Loss::PortHeader),
        gso::TCPV4 if family == Some(Family::V4) => Some((GsoProtocol::TcpV4, gso_tcpv4)),
        gso::TCPV6 if family == Some(Family::V6) => Some((GsoProtocol::TcpV6, gso_tcpv6)),
        gso::UDP_L4 if !tcp => return cut(header.gso_size),
        _ => return Err(Loss::PortHeader),
    };
    if let Some((protocol, taken)) = asked {
        if !taken {
            return cut(header.gso_size);
        }
        if header.gso_size == 0 {
            return Err(Loss::PortHeader);
        }
        let gso = Some(Gso::new(protocol, header.gso_size));
        return Ok(Inbound::Whole(Offload { checksum: Checksum::Blank, gso, hash: None }, false));
    }
    let taken = match family {
        Some(Family::V4) => sums.v4,
        Some(Family::V6) => sums.v6,
        None => false,
    };
    if same && taken && !tagged {
        let checksum = Checksum::Blank;
        return Ok(Inbound::Whole(Offload { checksum, ..Offload::default() }, false));
    }
    complete(buffer.packet_mut(), &header)?;
    let checksum = Checksum::Validated;
    Ok(Inbound::Whole(Offload { checksum, ..Offload::default() }, true))
}

fn cut(size: u16) -> Result<Inbound, Loss> {
    if size < LEAST_SEGMENT { Err(Loss::PortHeader) } else { Ok(Inbound::Cut(size)) }
}

/// Completes whatever checksum the port left blank: the sum from `csum_start` to the end, over which
/// the pseudo-header's stands in its place.
fn complete(packet: &mut [u8], header: &vnet::Header) -> Result<(), Loss> {
    let start = usize::from(header.csum_start);
    let rest = packet.get_mut(start..).ok_or(Loss::PortHeader)?;
    let sum = Sum::of(rest).checksum();
    let place = rest.get_mut(usize::from(header.csum_offset)..);
    let place = place.and_then(|place| place.first_chunk_mut()).ok_or(Loss::PortHeader)?;
    // Zero means "none" in UDP, and in TCP the two zeros are one number.
    *place = if sum == 0 { u16::MAX } else { sum }.to_be_bytes();
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

fn family(headers: &Headers) -> Option<Family> {
    Some(match headers.ip.as_ref()?.addresses {
        Addresses::V4(_) => Family::V4,
        Addresses::V6(_) => Family::V6,
    })
}

/// A position, as the header has it; a packet that the guest sent has less than 2^16 bytes.
fn position(at: usize) -> Result<u16, Loss> {
    u16::try_from(at).map_err(|_| Loss::Headers)
}

#[cfg(test)]
mod tests;
