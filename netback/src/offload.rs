//! What is left to others of a packet, between the ways of saying so: the guest's, in the slots
//! of its rings or in a header of its own, and the port's, in the header in front of the packet.
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

/// What a guest says of a packet that it sends, whatever it says it by.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Claims {
    /// Of its checksum.
    pub checksum: Claimed,
    /// How it is to be cut. Such a packet's checksum is blank, whether or not that is said.
    pub segments: Option<Segments>,
}

/// What a guest says of a packet's checksum.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Claimed {
    /// Nothing: it is there, and may be wrong.
    #[default]
    Unchecked,
    /// It is there and right.
    Validated,
    /// It is blank; where it is, is found here.
    Blank,
    /// It is blank, and this is where: the sum begins at `start`, and its place is `offset` behind that.
    BlankAt {
        /// From the Ethernet header on.
        start: u16,
        /// From there.
        offset: u16,
    },
}

/// How a packet is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segments {
    /// Of what protocol it is said to be: one of [`gso`], without its bit; another where it is said to be of
    /// none that there is.
    pub kind: u8,
    /// The most payload of a segment.
    pub size: u16,
    /// Only the first segment says that the sender slowed down (CWR).
    pub ecn: bool,
}

impl Segments {
    /// Of no protocol that there is, or of one that was not agreed on.
    pub const UNKNOWN: u8 = u8::MAX;
}

impl From<Offload> for Claims {
    fn from(offload: Offload) -> Self {
        let checksum = match offload.checksum {
            Checksum::Unchecked => Claimed::Unchecked,
            Checksum::Validated => Claimed::Validated,
            Checksum::Blank => Claimed::Blank,
        };
        let segments = offload.gso.map(|asked| {
            let kind = match asked.protocol() {
                Some(GsoProtocol::TcpV4) => gso::TCPV4,
                Some(GsoProtocol::TcpV6) => gso::TCPV6,
                _ => Segments::UNKNOWN,
            };
            Segments { kind, size: asked.size, ecn: false }
        });
        Self { checksum, segments }
    }
}

impl Claims {
    /// Whether something is to be done with the packet's headers.
    #[inline]
    #[must_use]
    pub const fn are_any(&self) -> bool {
        self.segments.is_some() || matches!(self.checksum, Claimed::Blank | Claimed::BlankAt { .. })
    }
}

/// What is to become of a packet for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inbound {
    /// It goes as it is, and this is said of it. The flag is whether its checksum was completed here.
    Whole(Offload, bool),
    /// It is to be cut into segments of that much payload first.
    Cut(u16),
}

/// What the port is told of a packet that the guest sent and `claims` so much of. Where a checksum is
/// left to others, the sum in its place is made anew; one that is elsewhere than others would find it, as in a
/// tunnel, is completed here.
///
/// # Errors
///
/// There is no such checksum, or no such segments.
#[inline]
pub fn to_port(
    packet: &mut [u8],
    headers: Option<&Headers>,
    claims: &Claims,
) -> Result<vnet::Header, Loss> {
    let mut header = vnet::Header::default();
    match (claims.checksum, claims.segments) {
        (Claimed::Unchecked, None) => return Ok(header),
        (Claimed::Validated, None) => {
            header.flags = flags::DATA_VALID;
            return Ok(header);
        }
        (Claimed::BlankAt { start, offset }, segments) => {
            let place = headers.and_then(|headers| Place::of(packet, headers).ok());
            let same = place.as_ref().is_some_and(|place| {
                (place.start, place.offset) == (usize::from(start), usize::from(offset))
            });
            if !same && segments.is_none() {
                complete(packet, start, offset).ok_or(Loss::ChecksumPlace)?;
                return Ok(header);
            }
            if !same {
                return Err(Loss::ChecksumPlace);
            }
        }
        _ => {}
    }
    let headers = headers.ok_or(Loss::Headers)?;
    let place = Place::of(packet, headers)?;
    if let Some(asked) = claims.segments {
        let transport = headers.transport().ok_or(Loss::NoTransport)?;
        header.gso_type = match (asked.kind, family(headers), transport.protocol) {
            (gso::TCPV4, Some(Family::V4), Protocol::Tcp)
            | (gso::TCPV6, Some(Family::V6), Protocol::Tcp)
            | (gso::UDP_L4, Some(_), Protocol::Udp) => asked.kind,
            _ => return Err(Loss::Segments),
        };
        if asked.size < LEAST_SEGMENT {
            return Err(Loss::Segments);
        }
        if asked.ecn {
            header.gso_type |= gso::ECN;
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
    complete(buffer.packet_mut(), header.csum_start, header.csum_offset).ok_or(Loss::PortHeader)?;
    let checksum = Checksum::Validated;
    Ok(Inbound::Whole(Offload { checksum, ..Offload::default() }, true))
}

fn cut(size: u16) -> Result<Inbound, Loss> {
    worth_cutting(size).map(Inbound::Cut)
}

fn worth_cutting(size: u16) -> Result<u16, Loss> {
    if size < LEAST_SEGMENT { Err(Loss::PortHeader) } else { Ok(size) }
}

/// What a machine's driver takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepts {
    /// Packets with blank checksums, wherever those are.
    pub sums: bool,
    /// TCP over IPv4 that is to be cut.
    pub tso4: bool,
    /// And over IPv6.
    pub tso6: bool,
    /// And such of which only the first segment has CWR.
    pub ecn: bool,
    /// UDP that is to be cut.
    pub uso: bool,
}

/// What is to become of a packet for a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes as it is, and the header in front of it says what is left to do.
    Whole {
        /// It is to be cut.
        gso: bool,
        /// Its checksum was completed here.
        summed: bool,
    },
    /// It is to be cut into segments of that much payload first.
    Cut(u16),
}

/// What is to become of the packet in `buffer`, which came from the port, for a machine that `accepts` so much.
///
/// # Errors
///
/// Its header says what cannot be.
#[inline]
pub fn for_machine(buffer: &mut Buffer, accepts: &Accepts) -> Result<Outcome, Loss> {
    let header = buffer.header();
    let (kind, ecn) = (header.gso_type & !gso::ECN, header.gso_type & gso::ECN != 0);
    let mut left = vnet::Header::default();
    if header.flags & flags::NEEDS_CSUM == 0 {
        if kind != gso::NONE {
            return Err(Loss::PortHeader);
        }
        if accepts.sums {
            left.flags = header.flags & flags::DATA_VALID;
        }
        buffer.set_header(&left);
        return Ok(Outcome::Whole { gso: false, summed: false });
    }
    let vnet::Header { csum_start, csum_offset, gso_size, .. } = header;
    if kind != gso::NONE {
        // As for other guests: the host's kernel leaves IP's length unread, and not every driver does.
        let size = buffer.len();
        say_length(buffer.packet_mut(), size);
        let headers = Headers::find(buffer.packet()).map_err(|_| Loss::PortHeader)?;
        let place = Place::of(buffer.packet(), &headers).map_err(|_| Loss::Tunnel)?;
        if (place.start, place.offset) != (usize::from(csum_start), usize::from(csum_offset)) {
            return Err(Loss::Tunnel);
        }
        let taken = match (kind, family(&headers), place.protocol()) {
            (gso::TCPV4, Some(Family::V4), Protocol::Tcp) => accepts.tso4,
            (gso::TCPV6, Some(Family::V6), Protocol::Tcp) => accepts.tso6,
            (gso::UDP_L4, Some(_), Protocol::Udp) => accepts.uso,
            _ => return Err(Loss::PortHeader),
        };
        if !taken || (ecn && !accepts.ecn) {
            return worth_cutting(gso_size).map(Outcome::Cut);
        }
        if gso_size == 0 {
            return Err(Loss::PortHeader);
        }
        left.gso_type = header.gso_type;
        (left.gso_size, left.hdr_len) = (gso_size, header.hdr_len);
    } else if !accepts.sums {
        complete(buffer.packet_mut(), csum_start, csum_offset).ok_or(Loss::PortHeader)?;
        buffer.set_header(&left);
        return Ok(Outcome::Whole { gso: false, summed: true });
    }
    let end = usize::from(csum_start).saturating_add(usize::from(csum_offset)).saturating_add(2);
    if end > buffer.len() {
        return Err(Loss::PortHeader);
    }
    left.flags = flags::NEEDS_CSUM;
    (left.csum_start, left.csum_offset) = (csum_start, csum_offset);
    buffer.set_header(&left);
    Ok(Outcome::Whole { gso: kind != gso::NONE, summed: false })
}

/// Completes whatever checksum was left blank: the sum from `start` to the end, over which the pseudo-header's
/// stands in its place, `offset` behind `start`. `None` where the packet has no such place.
fn complete(packet: &mut [u8], start: u16, offset: u16) -> Option<()> {
    let rest = packet.get_mut(usize::from(start)..)?;
    let sum = Sum::of(rest).checksum();
    let place = rest.get_mut(usize::from(offset)..)?.first_chunk_mut()?;
    // Zero means "none" in UDP, and in TCP the two zeros are one number.
    *place = if sum == 0 { u16::MAX } else { sum }.to_be_bytes();
    Some(())
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
