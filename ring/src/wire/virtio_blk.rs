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

/// A range to forget (`struct virtio_blk_discard_write_zeroes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where, in sectors of 512 bytes.
    pub sector: u64,
    /// How many such sectors.
    pub sectors: u32,
    /// Bits that mean nothing for a discard and have to be zero.
    pub flags: u32,
}

impl Range {
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
    /// Queues.
    pub num_queues: u16,
    /// The most sectors of 512 bytes to forget at once.
    pub max_discard_sectors: u32,
    /// Sectors of 512 bytes that are best forgotten together.
    pub discard_sector_alignment: u32,
    /// The same two for what is forgotten beyond recovery.
    pub max_secure_erase_sectors: u32,
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
        // The least and the best transfer, in sectors of the disk.
        put_at(&mut bytes, 26, 1_u16.to_le_bytes());
        put_at(&mut bytes, 34, self.num_queues.to_le_bytes());
        put_at(&mut bytes, 36, self.max_discard_sectors.to_le_bytes());
        put_at(&mut bytes, 40, u32::from(self.max_discard_sectors > 0).to_le_bytes());
        put_at(&mut bytes, 44, self.discard_sector_alignment.to_le_bytes());
        put_at(&mut bytes, 60, self.max_secure_erase_sectors.to_le_bytes());
        put_at(&mut bytes, 64, u32::from(self.max_secure_erase_sectors > 0).to_le_bytes());
        put_at(&mut bytes, 68, self.secure_erase_sector_alignment.to_le_bytes());
        bytes
    }
}
