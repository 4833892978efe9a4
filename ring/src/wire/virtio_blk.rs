//! The block protocol of virtio.
//!
//! A request is a chain of descriptors: a header, data, and a byte for the status. How it is cut into
//! descriptors means nothing. Positions are in sectors of 512 bytes whatever the disk's own. Source:
//! virtio 1.2, 5.2. Integers are little-endian.

use super::{bytes_at, put_at};

/// What a device says that it can do (`VIRTIO_BLK_F_*`).
pub mod feature {
    /// A chain has so many data segments at most.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk cannot be written.
    pub const RO: u64 = 1 << 5;
    /// The disk's sectors are told.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There are flushes.
    pub const FLUSH: u64 = 1 << 9;
    /// What is best written as a whole is told.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// There may be several queues.
    pub const MQ: u64 = 1 << 12;
    /// Ranges can be forgotten.
    pub const DISCARD: u64 = 1 << 13;
    /// Ranges can be zeroed.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Ranges can be forgotten beyond recovery.
    pub const SECURE_ERASE: u64 = 1 << 16;
}

/// What a request wants (`VIRTIO_BLK_T_*`).
pub mod kind {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Put earlier writes on stable storage.
    pub const FLUSH: u32 = 4;
    /// Tell the disk's name.
    pub const GET_ID: u32 = 8;
    /// Forget a range.
    pub const DISCARD: u32 = 11;
    /// Zero ranges.
    pub const WRITE_ZEROES: u32 = 13;
    /// Forget a range beyond recovery.
    pub const SECURE_ERASE: u32 = 14;
}

/// What came of it (`VIRTIO_BLK_S_*`).
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const IOERR: u8 = 1;
    /// There is no such thing.
    pub const UNSUPP: u8 = 2;
}

/// The most bytes of a disk's name.
pub const ID_BYTES: usize = 20;

/// What is in front of a request's data (`struct virtio_blk_req`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it wants.
    pub kind: u32,
    /// Where, in sectors of 512 bytes.
    pub sector: u64,
}

impl Header {
    /// Bytes of it.
    pub const SIZE: usize = 16;

    /// Takes it apart.
    #[inline]
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            kind: u32::from_le_bytes(bytes_at(bytes, 0)),
            sector: u64::from_le_bytes(bytes_at(bytes, 8)),
        }
    }

    /// Puts it together.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_at(&mut bytes, 0, self.kind.to_le_bytes());
        put_at(&mut bytes, 8, self.sector.to_le_bytes());
        bytes
    }
}

/// A range to forget or to zero (`struct virtio_blk_discard_write_zeroes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where, in sectors of 512 bytes.
    pub sector: u64,
    /// How many such sectors.
    pub sectors: u32,
    /// [`UNMAP`](Self::UNMAP), where it is to be zeroed; no bit where it is to be forgotten.
    pub flags: u32,
}

impl Range {
    /// What is zeroed need not keep its place on the medium (`VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`).
    pub const UNMAP: u32 = 1;
    /// Bytes of it.
    pub const SIZE: usize = 16;

    /// Takes it apart.
    #[inline]
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            sector: u64::from_le_bytes(bytes_at(bytes, 0)),
            sectors: u32::from_le_bytes(bytes_at(bytes, 8)),
            flags: u32::from_le_bytes(bytes_at(bytes, 12)),
        }
    }

    /// Puts it together.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_at(&mut bytes, 0, self.sector.to_le_bytes());
        put_at(&mut bytes, 8, self.sectors.to_le_bytes());
        put_at(&mut bytes, 12, self.flags.to_le_bytes());
        bytes
    }
}

/// What a driver is told of the disk (`struct virtio_blk_config`). What it leaves out is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The disk's size in sectors of 512 bytes.
    pub capacity: u64,
    /// The most data segments of a request.
    pub seg_max: u32,
    /// Bytes in the disk's sectors.
    pub blk_size: u32,
    /// How many of those make a physical sector, as a power of two.
    pub physical_block_exp: u8,
    /// How many of those lie in front of the first whole physical sector.
    pub alignment_offset: u8,
    /// The least transfer that is not wasteful, in the disk's sectors.
    pub min_io_size: u16,
    /// The best transfer, in the disk's sectors; 0 where none is better.
    pub opt_io_size: u32,
    /// Queues.
    pub num_queues: u16,
    /// The most sectors of 512 bytes to forget at once.
    pub max_discard_sectors: u32,
    /// The most ranges to forget by one request.
    pub max_discard_seg: u32,
    /// Sectors of 512 bytes that are best forgotten together.
    pub discard_sector_alignment: u32,
    /// The most sectors of 512 bytes to zero at once.
    pub max_write_zeroes_sectors: u32,
    /// The most ranges to zero by one request.
    pub max_write_zeroes_seg: u32,
    /// Whether [`Range::UNMAP`] can free what was zeroed.
    pub write_zeroes_may_unmap: bool,
    /// As for what is only forgotten, for what is forgotten beyond recovery.
    pub max_secure_erase_sectors: u32,
    /// See above.
    pub max_secure_erase_seg: u32,
    /// See above.
    pub secure_erase_sector_alignment: u32,
}

impl Configuration {
    /// Bytes of it, as far as it is given here.
    pub const SIZE: usize = 72;

    /// Puts it together.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_at(&mut bytes, 0, self.capacity.to_le_bytes());
        put_at(&mut bytes, 12, self.seg_max.to_le_bytes());
        put_at(&mut bytes, 20, self.blk_size.to_le_bytes());
        put_at(&mut bytes, 24, [self.physical_block_exp]);
        put_at(&mut bytes, 25, [self.alignment_offset]);
        put_at(&mut bytes, 26, self.min_io_size.to_le_bytes());
        put_at(&mut bytes, 28, self.opt_io_size.to_le_bytes());
        put_at(&mut bytes, 34, self.num_queues.to_le_bytes());
        put_at(&mut bytes, 36, self.max_discard_sectors.to_le_bytes());
        put_at(&mut bytes, 40, self.max_discard_seg.to_le_bytes());
        put_at(&mut bytes, 44, self.discard_sector_alignment.to_le_bytes());
        put_at(&mut bytes, 48, self.max_write_zeroes_sectors.to_le_bytes());
        put_at(&mut bytes, 52, self.max_write_zeroes_seg.to_le_bytes());
        put_at(&mut bytes, 56, [u8::from(self.write_zeroes_may_unmap)]);
        put_at(&mut bytes, 60, self.max_secure_erase_sectors.to_le_bytes());
        put_at(&mut bytes, 64, self.max_secure_erase_seg.to_le_bytes());
        put_at(&mut bytes, 68, self.secure_erase_sector_alignment.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// What lies at `offset` of a configuration in which `change` has set one field.
    fn at<const N: usize>(offset: usize, change: impl Fn(&mut Configuration)) -> [u8; N] {
        let mut all = Configuration::default();
        change(&mut all);
        let bytes = all.encode();
        let mut rest = bytes.to_vec();
        let field: Vec<u8> = rest.drain(offset..offset + N).collect();
        assert!(rest.iter().all(|byte| *byte == 0), "more than {offset}..+{N}: {bytes:?}");
        field.try_into().unwrap()
    }

    #[test]
    fn each_field_lies_where_the_specification_has_it() {
        // struct virtio_blk_config (virtio 1.2, 5.2.4): offsets counted from its beginning.
        let (four, two) = (0x0403_0201_u32.to_le_bytes(), 0x0201_u16.to_le_bytes());
        let (n4, n2) = (0x0403_0201, 0x0201);
        assert_eq!(at(0, |c| c.capacity = 0x0807_0605_0403_0201), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(at(12, |c| c.seg_max = n4), four);
        assert_eq!(at(20, |c| c.blk_size = n4), four);
        assert_eq!(at(24, |c| c.physical_block_exp = 3), [3]);
        assert_eq!(at(25, |c| c.alignment_offset = 7), [7]);
        assert_eq!(at(26, |c| c.min_io_size = n2), two);
        assert_eq!(at(28, |c| c.opt_io_size = n4), four);
        assert_eq!(at(34, |c| c.num_queues = n2), two);
        assert_eq!(at(36, |c| c.max_discard_sectors = n4), four);
        assert_eq!(at(40, |c| c.max_discard_seg = n4), four);
        assert_eq!(at(44, |c| c.discard_sector_alignment = n4), four);
        assert_eq!(at(48, |c| c.max_write_zeroes_sectors = n4), four);
        assert_eq!(at(52, |c| c.max_write_zeroes_seg = n4), four);
        assert_eq!(at(56, |c| c.write_zeroes_may_unmap = true), [1]);
        assert_eq!(at(60, |c| c.max_secure_erase_sectors = n4), four);
        assert_eq!(at(64, |c| c.max_secure_erase_seg = n4), four);
        assert_eq!(at(68, |c| c.secure_erase_sector_alignment = n4), four);
    }

    #[test]
    fn requests_and_ranges_have_the_layout_of_the_specification() {
        let header = Header { kind: kind::WRITE_ZEROES, sector: 0x0807_0605_0403_0201 };
        let bytes = [13, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!((header.encode(), Header::decode(&bytes)), (bytes, header));
        let range = Range { sector: 0x0807_0605_0403_0201, sectors: 0x0403_0201, flags: 1 };
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, Range::UNMAP as u8, 0, 0, 0];
        assert_eq!((range.encode(), Range::decode(&bytes)), (bytes, range));
    }
}
