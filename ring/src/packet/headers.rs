//! Where a packet's headers are.
//!
//! ```text
//!  Ethernet  VLAN tags  IPv4 with options, or IPv6 with extensions   TCP or UDP    payload  padding
//!  0         14         ip                                           transport.at           end
//! ```
//!
//! Every claim of length is held against the bytes that are there: what would reach past them is
//! [`Malformed`], and what comes after the end that IP claims is padding. An extension makes
//! progress by at least 8 bytes and there may be [`MOST_EXTENSIONS`], so that finding a header costs
//! little whatever the packet says.
//!
//! Source: IEEE 802.3, 802.1Q; RFC 791 section 3.1; RFC 8200 sections 3 and 4; RFC 4302 section 2.2;
//! RFC 9293 section 3.1; RFC 768. Units: bytes.

use core::ops::Range;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
pub const TAG: usize = 4;
/// Tags that are looked behind: a service tag and a customer tag.
pub const MOST_TAGS: usize = 2;
/// IPv6 extensions that are looked behind. RFC 8200 has six kinds, one of which may come twice.
pub const MOST_EXTENSIONS: usize = 8;

/// EtherTypes.
pub(super) mod ether_type {
    pub(in crate::packet) const IPV4: u16 = 0x0800;
    pub(in crate::packet) const IPV6: u16 = 0x86DD;
    /// 802.1Q and 802.1ad.
    pub(in crate::packet) const TAGS: [u16; 2] = [0x8100, 0x88A8];
}

/// Numbers of protocols and extensions in IP.
mod number {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

const IPV4_LEAST: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub(super) const IPV6: usize = 40;
const TCP_LEAST: usize = 20;
const UDP: usize = 8;
/// More fragments, or an offset other than zero: IPv4's.
const IPV4_FRAGMENT: u16 = 0x3FFF;
/// The same in IPv6's fragment header.
const IPV6_FRAGMENT: u16 = 0xFFF9;

/// A header reaches past the packet, or contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Not even an Ethernet header.
    #[error("{len} bytes are no Ethernet header")]
    Ethernet {
        /// Bytes there are.
        len: usize,
    },
    /// An IP header that is cut off, of another version than its EtherType says, or shorter than
    /// such a header can be; or the packet ends before IP says it does.
    #[error("IPv{version} header at {at} does not fit {len} bytes")]
    Ip {
        /// 4 or 6, by the EtherType.
        version: u8,
        /// Where it begins.
        at: usize,
        /// Bytes there are.
        len: usize,
    },
    /// An IPv6 extension that is cut off, or one too many.
    #[error("IPv6 extension {number} at {at} does not fit")]
    Extension {
        /// Its number.
        number: u8,
        /// Where it begins.
        at: usize,
    },
    /// A TCP or UDP header that is cut off, or shorter than such a header can be.
    #[error("header of protocol {number} at {at} does not fit")]
    Transport {
        /// TCP's or UDP's number.
        number: u8,
        /// Where it begins.
        at: usize,
    },
}

impl Malformed {
    /// A short, constant name, to count by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ethernet { .. } => "ethernet_header",
            Self::Ip { .. } => "ip_header",
            Self::Extension { .. } => "ipv6_extension",
            Self::Transport { .. } => "transport_header",
        }
    }
}

/// A packet's headers. Ranges and positions lie within the packet that they were found in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Headers {
    /// VLAN tags before the network header.
    pub tags: usize,
    /// The EtherType behind the tags.
    pub ether_type: u16,
    /// The network header, where it is IP.
    pub ip: Option<Ip>,
}

/// An IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Where it begins.
    pub at: usize,
    /// Source and destination.
    pub addresses: Addresses,
    /// Where IP says that the packet ends; what follows is padding.
    pub end: usize,
    /// The protocol behind this header and its extensions, as a number.
    pub number: u8,
    /// Whether the packet is a fragment of another.
    pub fragment: bool,
    /// The TCP or UDP header. There is none in a fragment, nor behind a routing header that has not
    /// reached its end.
    pub transport: Option<Transport>,
}

/// Where the addresses are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// Eight bytes: source, destination.
    V4(Range<usize>),
    /// Thirty-two bytes: source, destination.
    V6(Range<usize>),
}

impl Addresses {
    /// Where they are, whichever they are.
    #[inline]
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        match self {
            Self::V4(range) | Self::V6(range) => range.clone(),
        }
    }
}

/// A TCP or UDP header, which lies within the packet as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport {
    /// Which.
    pub protocol: Protocol,
    /// Where it begins: the source port, then the destination port.
    pub at: usize,
    /// Where what it carries begins.
    pub payload: usize,
}

/// A protocol with ports and a checksum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in IP.
    #[inline]
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => number::TCP,
            Self::Udp => number::UDP,
        }
    }

    /// Where in its header the checksum is.
    #[inline]
    #[must_use]
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

impl Headers {
    /// Finds the headers of `packet`.
    ///
    /// # Errors
    ///
    /// [`Malformed`]. What is not IP, or not TCP or UDP in it, is no error.
    #[inline]
    pub fn find(packet: &[u8]) -> Result<Self, Malformed> {
        Self::find_in(packet, packet.len())
    }

    /// Finds the headers of a packet of `size` bytes that begins with `packet`: for a packet of
    /// which no more than its headers was copied.
    ///
    /// # Errors
    ///
    /// [`Malformed`]; also where headers go on behind what there is of the packet.
    #[inline]
    pub fn find_in(packet: &[u8], size: usize) -> Result<Self, Malformed> {
        let ethernet = Malformed::Ethernet { len: packet.len() };
        let mut at = ETHERNET;
        let mut ether_type = word(packet, 12).ok_or(ethernet)?;
        let mut tags = 0_usize;
        while ether_type::TAGS.contains(&ether_type) && tags < MOST_TAGS {
            // A tag is two bytes of its own and the EtherType of what follows.
            ether_type = word(packet, at.saturating_add(2)).ok_or(ethernet)?;
            at = at.saturating_add(TAG);
            tags = tags.saturating_add(1);
        }
        let ip = match ether_type {
            ether_type::IPV4 => Some(ipv4(packet, size, at)?),
            ether_type::IPV6 => Some(ipv6(packet, size, at)?),
            _ => None,
        };
        Ok(Self { tags, ether_type, ip })
    }

    /// Whether a frame that begins with `head`, of which only its Ethernet header matters, has a VLAN tag.
    #[inline]
    #[must_use]
    pub fn are_tagged(head: &[u8]) -> bool {
        word(head, 12).is_some_and(|ether_type| ether_type::TAGS.contains(&ether_type))
    }

    /// The TCP or UDP header.
    #[inline]
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.ip.as_ref()?.transport
    }
}

#[inline]
fn ipv4(packet: &[u8], size: usize, at: usize) -> Result<Ip, Malformed> {
    let malformed = Malformed::Ip { version: 4, at, len: size };
    let header = tail::<IPV4_LEAST>(packet, at).ok_or(malformed)?;
    let [first, _, len_high, len_low, _, _, fragment_high, fragment_low, _, number, ..] = *header;
    let len = usize::from(first & 0xF).saturating_mul(4);
    let total = usize::from(u16::from_be_bytes([len_high, len_low]));
    let end = at.saturating_add(total);
    if first >> 4 != 4 || len < IPV4_LEAST || total < len || end > size {
        return Err(malformed);
    }
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]) & IPV4_FRAGMENT != 0;
    let transport =
        if fragment { None } else { transport(packet, at.saturating_add(len), end, number)? };
    let addresses = Addresses::V4(at.saturating_add(12)..at.saturating_add(20));
    Ok(Ip { at, addresses, end, number, fragment, transport })
}

#[inline]
fn ipv6(packet: &[u8], size: usize, at: usize) -> Result<Ip, Malformed> {
    let malformed = Malformed::Ip { version: 6, at, len: size };
    let header = tail::<IPV6>(packet, at).ok_or(malformed)?;
    let [first, _, _, _, len_high, len_low, number, ..] = *header;
    let behind = at.saturating_add(IPV6);
    let end = behind.saturating_add(usize::from(u16::from_be_bytes([len_high, len_low])));
    if first >> 4 != 6 || end > size {
        return Err(malformed);
    }
    let addresses = Addresses::V6(at.saturating_add(8)..behind);
    let last = extensions(packet, behind, end, number)?;
    let transport = if last.fragment || last.routed {
        None
    } else {
        transport(packet, last.at, end, last.number)?
    };
    Ok(Ip { at, addresses, end, number: last.number, fragment: last.fragment, transport })
}

/// What stands behind the extensions of an IPv6 header.
struct Behind {
    number: u8,
    at: usize,
    fragment: bool,
    /// The addresses in the header are not yet the final ones.
    routed: bool,
}

#[inline]
fn extensions(packet: &[u8], at: usize, end: usize, number: u8) -> Result<Behind, Malformed> {
    let mut last = Behind { number, at, fragment: false, routed: false };
    let within = packet.get(..end).unwrap_or(packet);
    for _ in 0..=MOST_EXTENSIONS {
        let units = match last.number {
            number::HOP_BY_HOP
            | number::ROUTING
            | number::FRAGMENT
            | number::AUTHENTICATION
            | number::DESTINATION => tail::<8>(within, last.at),
            _ => return Ok(last),
        };
        let malformed = Malformed::Extension { number: last.number, at: last.at };
        let [next, len, high, low, ..] = *units.ok_or(malformed)?;
        let units = usize::from(len);
        let bytes = match last.number {
            number::FRAGMENT => {
                last.fragment |= u16::from_be_bytes([high, low]) & IPV6_FRAGMENT != 0;
                8
            }
            number::AUTHENTICATION => units.saturating_add(2).saturating_mul(4),
            number::ROUTING => {
                // Segments left.
                last.routed |= low != 0;
                units.saturating_add(1).saturating_mul(8)
            }
            _ => units.saturating_add(1).saturating_mul(8),
        };
        let after = last.at.saturating_add(bytes);
        if after > end {
            return Err(malformed);
        }
        last.number = next;
        last.at = after;
        if last.fragment {
            // Only the first fragment has what follows, and only by chance as a whole.
            return Ok(last);
        }
    }
    Err(Malformed::Extension { number: last.number, at: last.at })
}

#[inline]
fn transport(
    packet: &[u8],
    at: usize,
    end: usize,
    number: u8,
) -> Result<Option<Transport>, Malformed> {
    let malformed = Malformed::Transport { number, at };
    let within = packet.get(..end).unwrap_or(packet);
    match number {
        number::TCP => {
            let header = tail::<TCP_LEAST>(within, at).ok_or(malformed)?;
            let [.., offset, _, _, _, _, _, _, _] = *header;
            let len = usize::from(offset >> 4).saturating_mul(4);
            let payload = at.saturating_add(len);
            if len < TCP_LEAST || payload > within.len() {
                return Err(malformed);
            }
            Ok(Some(Transport { protocol: Protocol::Tcp, at, payload }))
        }
        number::UDP => {
            tail::<UDP>(within, at).ok_or(malformed)?;
            let payload = at.saturating_add(UDP);
            Ok(Some(Transport { protocol: Protocol::Udp, at, payload }))
        }
        _ => Ok(None),
    }
}

/// The `N` bytes at `at`.
#[inline]
fn tail<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

/// The 16-bit word at `at`, in the network's byte order.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    tail(bytes, at).map(|word| u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests;
