//! Where the fields of a request lie, by the frontend's ABI.
//!
//! ```text
//!                  x86_64, and native elsewhere      x86_32
//! operation                  0                          0
//! nr_segments, flag,         1                          1
//!   indirect_op
//! handle                     2 (indirect: 24)           2 (indirect: 20)
//! nr_segments, indirect      2                          2
//! id                         8                          4
//! sector_number             16                         12
//! seg                       24                         20
//! nr_sectors (discard)      24                         20
//! indirect_grefs            28                         24
//! whole slot               112                        108
//! whole response            16                         12
//! ```
//!
//! Source: io/blkif.h (RELEASE-4.17) with the alignment of `uint64_t` in each ABI: 8 bytes, except
//! on 32-bit x86, where it is 4.

use hypervisor::ConfigError;

use crate::protocol::SlotBytes;

/// One of the layouts, as a type.
pub trait Layout: 'static {
    /// The layout as a value.
    const ABI: Abi;
    /// Offset of `id`.
    const ID: usize;
    /// Offset of `sector_number`.
    const SECTOR: usize;
    /// Offset of `seg` in a transfer and of `nr_sectors` in a discard.
    const BODY: usize;
    /// Offset of `handle` in an indirect request.
    const INDIRECT_HANDLE: usize;
    /// Offset of `indirect_grefs`.
    const INDIRECT_GREFS: usize;
    /// A slot's bytes.
    type Slot: SlotBytes;
    /// A response's bytes.
    type Answer: SlotBytes;
}

/// What a 64-bit x86 guest speaks, and every guest whose `uint64_t` is aligned to 8 bytes.
#[derive(Debug)]
pub enum X86_64 {}

impl Layout for X86_64 {
    const ABI: Abi = Abi::X86_64;
    const ID: usize = 8;
    const SECTOR: usize = 16;
    const BODY: usize = 24;
    const INDIRECT_HANDLE: usize = 24;
    const INDIRECT_GREFS: usize = 28;
    type Slot = [u8; 112];
    type Answer = [u8; 16];
}

/// What a 32-bit x86 guest speaks.
#[derive(Debug)]
pub enum X86_32 {}

impl Layout for X86_32 {
    const ABI: Abi = Abi::X86_32;
    const ID: usize = 4;
    const SECTOR: usize = 12;
    const BODY: usize = 20;
    const INDIRECT_HANDLE: usize = 20;
    const INDIRECT_GREFS: usize = 24;
    type Slot = [u8; 108];
    type Answer = [u8; 12];
}

/// What a frontend compiled as we are speaks.
#[cfg(target_arch = "x86")]
pub type Native = X86_32;

/// What a frontend compiled as we are speaks.
#[cfg(not(target_arch = "x86"))]
pub type Native = X86_64;

/// The layouts, as a value: what the store's key `protocol` says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Abi {
    /// [`type@X86_32`].
    X86_32,
    /// [`type@X86_64`]; also Arm's, whose 64-bit fields are aligned the same.
    X86_64,
}

impl Abi {
    /// What we speak ourselves.
    pub const NATIVE: Self = <Native as Layout>::ABI;

    /// What a frontend speaks that says nothing: frontends on x86 that predate the key are 32-bit.
    pub const UNSAID: Self = if cfg!(target_arch = "x86_64") { Self::X86_32 } else { Self::NATIVE };

    /// Our own as the store has it (`XEN_IO_PROTO_ABI_NATIVE`).
    pub const NATIVE_KEY: &'static str = if cfg!(target_arch = "x86") {
        "x86_32-abi"
    } else if cfg!(target_arch = "x86_64") {
        "x86_64-abi"
    } else {
        "arm-abi"
    };

    /// What the value of the key `protocol` names; `None` where there is no such key.
    ///
    /// # Errors
    ///
    /// A value that names no layout.
    pub fn from_key(value: Option<&str>) -> Result<Self, ConfigError> {
        match value {
            None => Ok(Self::UNSAID),
            Some("x86_32-abi") => Ok(Self::X86_32),
            Some("x86_64-abi" | "arm-abi") => Ok(Self::X86_64),
            Some(other) => Err(ConfigError::new(
                "protocol",
                other,
                "is none of x86_32-abi, x86_64-abi, arm-abi",
            )),
        }
    }

    /// Bytes in a slot.
    #[must_use]
    pub const fn slot_size(self) -> usize {
        match self {
            Self::X86_32 => <X86_32 as Layout>::Slot::LEN,
            Self::X86_64 => <X86_64 as Layout>::Slot::LEN,
        }
    }

    /// Slots on a ring of `pages` pages.
    #[must_use]
    pub const fn slots(self, pages: usize) -> u32 {
        crate::layout::slots(pages.saturating_mul(hypervisor::PAGE_SIZE), self.slot_size())
    }
}
