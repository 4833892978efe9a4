//! The header that stands in front of a packet where the host's kernel has it: on a TAP or a packet socket.
//!
//! ```text
//!  0     1        2        4        6           8            10          12
//!  +-----+--------+--------+--------+-----------+------------+-----------+
//!  |flags|gso type|hdr_len |gso_size|csum_start |csum_offset |num_buffers|
//!  +-----+--------+--------+--------+-----------+------------+-----------+
//! ```
//!
//! Little-endian. Source: `virtio_net_hdr` in section 5.1.6 of virtio 1.2; `linux/virtio_net.h`.
//! Units: bytes; positions are from the Ethernet header on.

/// What is said of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Header {
    /// [`flags`].
    pub flags: u8,
    /// [`gso`].
    pub gso_type: u8,
    /// Of the headers that each segment begins with; a hint.
    pub hdr_len: u16,
    /// The most payload of a segment.
    pub gso_size: u16,
    /// Where the sum begins, where [`flags::NEEDS_CSUM`].
    pub csum_start: u16,
    /// Where the checksum is, from there.
    pub csum_offset: u16,
    /// Says nothing on a TAP.
    pub num_buffers: u16,
}

/// How much of the header a port has in front of its packets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Form {
    /// All of it.
    #[default]
    Whole,
    /// All but `num_buffers`: packet sockets.
    Short,
}

impl Form {
    /// Bytes of it.
    #[inline]
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Whole => Header::SIZE,
            Self::Short => Header::SHORT,
        }
    }
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is blank.
    pub const NEEDS_CSUM: u8 = 1;
    /// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was found right.
    pub const DATA_VALID: u8 = 2;
}

/// Values of [`Header::gso_type`].
pub mod gso {
    /// `VIRTIO_NET_HDR_GSO_NONE`.
    pub const NONE: u8 = 0;
    /// `VIRTIO_NET_HDR_GSO_TCPV4`.
    pub const TCPV4: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_TCPV6`.
    pub const TCPV6: u8 = 4;
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`.
    pub const UDP_L4: u8 = 5;
    /// `VIRTIO_NET_HDR_GSO_ECN`: a bit beside the others, that the first segment only has CWR.
    pub const ECN: u8 = 0x80;
}

impl Header {
    /// Bytes of one, with `num_buffers`.
    pub const SIZE: usize = 12;
    /// Bytes of one without.
    pub const SHORT: usize = 10;

    /// Reads one.
    #[inline]
    #[must_use]
    pub const fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h, i, j] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
            num_buffers: u16::from_le_bytes([i, j]),
        }
    }

    /// Writes one.
    #[inline]
    #[must_use]
    pub const fn encode(&self) -> [u8; Self::SIZE] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        let [i, j] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, i, j]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_lies_as_virtio_has_it() {
        let header = Header {
            flags: flags::NEEDS_CSUM,
            gso_type: gso::TCPV6,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
            num_buffers: 0x090A,
        };
        let bytes = [1, 4, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(&bytes), header);
    }
}
