//! Walks the descriptors of a chain.

use hypervisor::memory::Ram;

use super::{DESCRIPTOR, Device, Fault, Head};
use crate::shared::{Halves, Words};

/// `VIRTQ_DESC_F_NEXT`: there is a successor.
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: for the device to write.
const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// The most buffers that a chain with an indirect table may have, however large the table: as many as
/// one system call takes, and a header and a status.
pub const MOST_BUFFERS: u32 = 1024 + 2;

/// A buffer of the guest's, in the terms of its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The guest-physical address; whether there is memory is not checked.
    pub at: u64,
    /// How many bytes.
    pub len: u32,
    /// Whether it is for the device to write, or to read.
    pub writable: bool,
}

/// The buffers of one chain. Each descriptor is copied out once; an error ends it.
pub struct Chain<'a, M, R> {
    device: &'a Device<M>,
    ram: &'a R,
    /// Where the table lies and how many descriptors it has, once that is an indirect one.
    table: Option<u64>,
    size: u32,
    next: Option<u16>,
    left: u32,
    most: u32,
    wrote: bool,
}

impl<M: Words + Halves> Device<M> {
    /// The buffers that `head` names, where indirect tables are read from `ram`.
    #[inline]
    pub fn chain<'a, R: Ram>(&'a self, head: &Head, ram: &'a R) -> Chain<'a, M, R> {
        let size = u32::from(self.size());
        Chain {
            device: self,
            ram,
            table: None,
            size,
            next: Some(head.number()),
            left: size,
            most: size,
            wrote: false,
        }
    }
}

impl<M: Words + Halves, R: Ram> Chain<'_, M, R> {
    fn step(&mut self, number: u16) -> Result<Buffer, Fault> {
        let mut descriptor = self.read(number)?;
        if descriptor.flags & INDIRECT != 0 {
            let Descriptor { at, len, flags, .. } = descriptor;
            if self.table.is_some() || flags & NEXT != 0 {
                return Err(Fault::Indirect { flags });
            }
            let entries = len.checked_div(DESCRIPTOR as u32).unwrap_or(0);
            if entries == 0 || !len.is_multiple_of(DESCRIPTOR as u32) {
                return Err(Fault::IndirectLength { len });
            }
            self.table = Some(at);
            self.size = entries;
            self.most = entries.min(MOST_BUFFERS);
            self.left = self.most;
            descriptor = self.read(0)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(Fault::Indirect { flags: descriptor.flags });
            }
        }
        let Descriptor { at, len, flags, next } = descriptor;
        self.left = self.left.saturating_sub(1);
        self.next = (flags & NEXT != 0).then_some(next);
        if let Some(next) = self.next {
            if u32::from(next) >= self.size {
                return Err(Fault::Next { next, size: self.size });
            }
            if self.left == 0 {
                return Err(Fault::Loop { most: self.most });
            }
        }
        let writable = flags & WRITE != 0;
        if self.wrote && !writable {
            return Err(Fault::Order);
        }
        self.wrote = writable;
        Ok(Buffer { at, len, writable })
    }

    fn read(&self, number: u16) -> Result<Descriptor, Fault> {
        let mut bytes = [0; DESCRIPTOR];
        match self.table {
            Some(table) => {
                let at = table.wrapping_add(u64::from(number).saturating_mul(DESCRIPTOR as u64));
                self.ram.read(at, &mut bytes)?;
            }
            None => {
                let at = usize::from(number).saturating_mul(DESCRIPTOR);
                self.device.descriptors().copy_out(at, &mut bytes);
            }
        }
        Ok(Descriptor::from(bytes))
    }
}

impl<M: Words + Halves, R: Ram> Iterator for Chain<'_, M, R> {
    type Item = Result<Buffer, Fault>;

    #[inline]
    fn next(&mut self) -> Option<Result<Buffer, Fault>> {
        let number = self.next.take()?;
        let step = self.step(number);
        if step.is_err() {
            self.next = None;
        }
        Some(step)
    }
}

/// A descriptor (`struct virtq_desc`), copied out.
struct Descriptor {
    at: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl From<[u8; DESCRIPTOR]> for Descriptor {
    #[inline]
    fn from(bytes: [u8; DESCRIPTOR]) -> Self {
        let all = u128::from_le_bytes(bytes);
        // Truncation picks the fields apart.
        Self {
            at: all as u64,
            len: (all >> 64) as u32,
            flags: (all >> 96) as u16,
            next: (all >> 112) as u16,
        }
    }
}
