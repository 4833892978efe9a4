//! The image file itself, driven by io_uring, to compare with.
#![expect(unsafe_code, reason = "vouches for buffers that the kernel fills")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use uring::{Buffers, Operation, Piece, Ring};

use crate::report::{Case, Measured};

const BLOCK: u32 = 4096;
const TWICE: usize = 2 * BLOCK as usize;

/// Whether the file can be read past the page cache.
pub(crate) fn direct_works(path: &Path) -> bool {
    let Ok(file) = open(path, true, false) else { return false };
    // Aligned as the kernel wants it: within a buffer of twice the size there is such a place.
    let mut bytes = vec![0_u8; TWICE];
    let skip = bytes.as_ptr().align_offset(BLOCK as usize);
    bytes
        .get_mut(skip..skip.saturating_add(BLOCK as usize))
        .is_some_and(|bytes| file.read_at(bytes, 0).is_ok())
}

fn open(path: &Path, direct: bool, write: bool) -> Result<File> {
    File::options()
        .read(true)
        .write(write)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// A block of bytes that the kernel fills or stores, and since when it has it.
struct Buffer {
    piece: [Piece; 1],
    since: Instant,
}

impl Buffer {
    const LAYOUT: Layout = match Layout::from_size_align(BLOCK as usize, BLOCK as usize) {
        Ok(layout) => layout,
        Err(_) => panic!("a block is a power of two"),
    };

    fn new() -> Self {
        // SAFETY: the layout has bytes.
        let base = unsafe { alloc_zeroed(Self::LAYOUT) };
        if base.is_null() {
            handle_alloc_error(Self::LAYOUT);
        }
        Self { piece: [Piece { base, len: BLOCK, fixed: None }], since: Instant::now() }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let [piece] = self.piece;
        // SAFETY: allocated in `new` with this layout; the ring has given it back.
        unsafe { dealloc(piece.base, Self::LAYOUT) };
    }
}

// SAFETY: the block stays allocated until `self` is dropped, and no reference into it is ever made.
unsafe impl Buffers for Buffer {
    fn pieces(&self) -> &[Piece] {
        &self.piece
    }
}

/// Measures a case on the file.
pub(crate) fn measure(path: &Path, direct: bool, case: Case, seconds: u64) -> Result<Measured> {
    let file = open(path, direct, case.write)?;
    let blocks = file.metadata()?.len().checked_div(u64::from(BLOCK)).unwrap_or(0);
    let mut ring = Ring::<Buffer>::new(case.depth)?;
    let id = ring.add_file(file.as_fd())?;
    // Up to a minute, in nanoseconds.
    let mut latencies = Histogram::<u64>::new_with_max(60_000_000_000, 3)?;
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let mut place = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.checked_rem(blocks).unwrap_or(0).saturating_mul(u64::from(BLOCK))
    };
    let mut idle: Vec<Buffer> = (0..case.depth).map(|_| Buffer::new()).collect();
    let mut done = Vec::new();
    let began = Instant::now();
    let limit = Duration::from_secs(seconds);
    loop {
        let more = began.elapsed() < limit;
        while more && let Some(mut buffer) = idle.pop() {
            buffer.since = Instant::now();
            let offset = place();
            let operation = match case.write {
                true => Operation::Write { file: id, offset },
                false => Operation::Read { file: id, offset },
            };
            if ring.begin(operation, buffer).is_err() {
                bail!("the ring has less room than it was made with");
            }
        }
        if ring.under_way() == 0 {
            break;
        }
        ring.wait(None)?;
        ring.completed(&mut done)?;
        for completed in done.drain(..) {
            match completed.result {
                Ok(bytes) if bytes == u64::from(BLOCK) => {}
                Ok(bytes) => bail!("{bytes} of {BLOCK} bytes"),
                Err(errno) => return Err(std::io::Error::from_raw_os_error(errno).into()),
            }
            let took = completed.held.since.elapsed().as_nanos();
            latencies.saturating_record(u64::try_from(took).unwrap_or(u64::MAX));
            idle.push(completed.held);
        }
    }
    Ok(Measured::from_latencies(&latencies, began.elapsed().as_secs_f64()))
}
