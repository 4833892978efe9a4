//! A medium in this process's memory, for measuring and for tests.
//!
//! It is sparse: what was never written, or was discarded, takes no memory and reads as zeroes. All
//! queues of a device share one [`Disk`]. Nothing is stable: a flush orders nothing that was not
//! ordered already. A secure discard zeroes the memory before it is freed.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ::uring::Buffers;
use hypervisor::{ConfigError, HostError};

use crate::engine::{Engine, Finished, Operation, Woken, pieces, sleep};
use crate::image::{DiscardLimits, Geometry};

/// Bytes that are allocated, freed and locked as a whole.
const CHUNK: u64 = 64 * 1024;

/// Chunks in a region; a region's table is made when something in it is first written.
const REGION: u64 = 1024;

/// The largest disk: its table of regions then has some MiB.
const LARGEST: u64 = 16 << 40;

type Chunk = Mutex<Option<Box<[u8]>>>;

/// The bytes, shared by a device's queues.
#[derive(Debug)]
pub struct Disk {
    geometry: Geometry,
    regions: Vec<OnceLock<Box<[Chunk]>>>,
}

impl Disk {
    /// A disk of `size` zero bytes in sectors of `sector_size`.
    ///
    /// # Errors
    ///
    /// The size is zero, is no multiple of the sector size, or is too large to keep a table of; or
    /// there is no such sector size.
    pub fn new(size: u64, sector_size: u32) -> Result<Self, ConfigError> {
        if ![512, 4096].contains(&sector_size) {
            return Err(ConfigError::new("sector size", sector_size, "must be 512 or 4096"));
        }
        if size == 0 || !size.is_multiple_of(u64::from(sector_size)) || size > LARGEST {
            let problem =
                format!("must be a multiple of {sector_size} bytes, from one up to {LARGEST}");
            return Err(ConfigError::new("size", size, problem));
        }
        let regions = size.div_ceil(CHUNK.saturating_mul(REGION));
        let granularity = u32::try_from(CHUNK).unwrap_or(u32::MAX);
        let discard = Some(DiscardLimits::new(granularity, true));
        Ok(Self {
            geometry: Geometry { discard, ..Geometry::new(size, sector_size) },
            regions: (0..regions).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Its measures.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The chunk that the byte at `offset` lies in; `None` where nothing near it was written and
    /// `make` does not ask for it.
    fn chunk(&self, offset: u64, make: bool) -> Option<&Chunk> {
        let number = offset.checked_div(CHUNK)?;
        let region = self.regions.get(usize::try_from(number.checked_div(REGION)?).ok()?)?;
        let chunks = if make {
            region.get_or_init(|| (0..REGION).map(|_| Mutex::new(None)).collect())
        } else {
            region.get()?
        };
        chunks.get(usize::try_from(number.checked_rem(REGION)?).ok()?)
    }

    fn read(&self, offset: u64, held: &impl Buffers) {
        pieces::cut(held, offset, CHUNK, |at, into, len| {
            let locked = self
                .chunk(at, false)
                .map(|chunk| chunk.lock().unwrap_or_else(PoisonError::into_inner));
            let bytes = locked.as_ref().and_then(|chunk| within(chunk.as_deref()?, at, len));
            match bytes {
                Some(bytes) => pieces::fill(into, bytes),
                None => pieces::fill_zero(into, len),
            }
        });
    }

    fn write(&self, offset: u64, held: &impl Buffers) {
        pieces::cut(held, offset, CHUNK, |at, from, len| {
            let Some(chunk) = self.chunk(at, true) else { return };
            let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
            let chunk = chunk.get_or_insert_with(|| vec![0; CHUNK as usize].into_boxed_slice());
            if let Some(bytes) = within_mut(chunk, at, len) {
                pieces::take(from, bytes);
            }
        });
    }

    fn discard(&self, offset: u64, len: u64, secure: bool) {
        let end = offset.saturating_add(len).min(self.geometry.size);
        let mut at = offset;
        while at < end {
            let next = at.saturating_add(1).next_multiple_of(CHUNK).min(end);
            let len = usize::try_from(next.saturating_sub(at)).unwrap_or(0);
            if let Some(chunk) = self.chunk(at, false) {
                let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
                let whole = len as u64 == CHUNK;
                if !whole || secure {
                    let bytes = chunk.as_deref_mut().and_then(|chunk| within_mut(chunk, at, len));
                    bytes.unwrap_or_default().fill(0);
                }
                if whole {
                    *chunk = None;
                }
            } else if self.region_is_empty(at) {
                // A whole region that nothing was written to is stepped over at once.
                at = at.saturating_add(1).next_multiple_of(CHUNK.saturating_mul(REGION));
                continue;
            }
            at = next;
        }
    }

    fn region_is_empty(&self, offset: u64) -> bool {
        let number = offset.checked_div(CHUNK.saturating_mul(REGION)).unwrap_or(0);
        let region = usize::try_from(number).ok().and_then(|number| self.regions.get(number));
        region.is_none_or(|region| region.get().is_none())
    }

    /// Whether `len` bytes from `offset` on lie on the disk.
    fn has(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.geometry.size)
    }
}

fn within(chunk: &[u8], at: u64, len: usize) -> Option<&[u8]> {
    chunk.get(usize::try_from(at.checked_rem(CHUNK)?).ok()?..)?.get(..len)
}

fn within_mut(chunk: &mut [u8], at: u64, len: usize) -> Option<&mut [u8]> {
    chunk.get_mut(usize::try_from(at.checked_rem(CHUNK)?).ok()?..)?.get_mut(..len)
}

/// One queue's way to a [`Disk`].
#[derive(Debug)]
pub struct Memory<T> {
    disk: Arc<Disk>,
    done: Vec<Finished<T>>,
    depth: usize,
}

impl<T: Buffers> Memory<T> {
    /// A queue of up to `depth` operations at a time on `disk`.
    #[must_use]
    pub fn new(disk: Arc<Disk>, depth: u32) -> Self {
        Self { disk, done: Vec::with_capacity(depth as usize), depth: depth as usize }
    }
}

impl<T: Buffers> Engine<T> for Memory<T> {
    fn submit(&mut self, operation: Operation, held: T) -> Result<(), T> {
        if self.done.len() >= self.depth {
            return Err(held);
        }
        let total = pieces::total(&held);
        let result = match operation {
            Operation::Read { offset } if self.disk.has(offset, total) => {
                self.disk.read(offset, &held);
                Ok(total)
            }
            Operation::Write { offset } if self.disk.has(offset, total) => {
                self.disk.write(offset, &held);
                Ok(total)
            }
            Operation::Discard { offset, len, secure } if self.disk.has(offset, len) => {
                self.disk.discard(offset, len, secure);
                Ok(0)
            }
            // What nothing is stored of reads as zeroes.
            Operation::Zero { offset, len, .. } if self.disk.has(offset, len) => {
                self.disk.discard(offset, len, true);
                Ok(0)
            }
            Operation::Flush => Ok(0),
            Operation::Read { .. }
            | Operation::Write { .. }
            | Operation::Discard { .. }
            | Operation::Zero { .. } => Err(libc::EIO),
        };
        self.done.push(Finished { held, result });
        Ok(())
    }

    fn kick(&mut self) -> Result<(), HostError> {
        Ok(())
    }

    fn finished(&mut self, into: &mut Vec<Finished<T>>) -> Result<(), HostError> {
        into.append(&mut self.done);
        Ok(())
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Woken, HostError> {
        if !self.done.is_empty() {
            return Ok(Woken::new(false, true));
        }
        Ok(Woken::new(sleep::until_readable(watched, timeout)?, false))
    }

    fn under_way(&self) -> usize {
        self.done.len()
    }

    fn register(&mut self, _slot: u16, _base: *mut u8, _len: usize) -> bool {
        false
    }
}
