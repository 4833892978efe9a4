//! Operations that the kernel has, each with what must stay alive meanwhile.
//!
//! The iovec array of an operation lies here and not in the submission entry, because the kernel
//! may read it again when it takes the operation up later in a worker. A slot is not reused before
//! its completion was seen, so the array stays where it is and as it is until then.
use io_uring::{opcode, squeue, types};
use libc::iovec;

use crate::buffers::{Buffers, Piece};
use crate::operation::{Completed, Operation};

/// `BLOCK_URING_CMD_DISCARD` (linux/blkdev.h): `_IO(0x12, 0)`.
const BLOCK_DISCARD: u32 = 0x12 << 8;

/// How often an operation is tried again that the kernel gave up without having done it (`EINTR`,
/// `EAGAIN`). Neither says anything about the medium; the bound is against a kernel that never ends.
const RETRIES: u32 = 1000;

/// The offset of a file that has none.
const NO_OFFSET: u64 = u64::MAX;

/// `RWF_NOWAIT` (linux/fs.h): at once or not at all. That the file is non-blocking would not do, for the
/// ring waits in its stead.
const AT_ONCE: libc::c_int = 8;

/// Iovecs handed over at a time (`IOV_MAX`); more is a short transfer, which is resumed.
const MOST_IOVECS: usize = 1024;

/// One operation under way.
struct Slot<T> {
    held: T,
    operation: Operation,
    /// Bytes in all pieces.
    total: u64,
    /// Bytes moved so far.
    done: u64,
    retries: u32,
}

/// Place for as many operations as may be under way at once.
pub(crate) struct Slots<T> {
    slots: Vec<Option<Slot<T>>>,
    /// Beside the slots, so that each array's allocation serves one operation after another.
    iovecs: Vec<Vec<iovec>>,
    /// Slots that hold nothing.
    free: Vec<u32>,
    /// The buffers' registered table; pieces that name a slot beyond it go the ordinary way.
    pub(crate) fixed: u16,
    /// This kernel knows of no "at once" for the files that have packets.
    patient: bool,
}

/// What a completion means for its slot.
pub(crate) enum Progress<T> {
    /// It is over.
    Over(Completed<T>),
    /// The rest must be asked for.
    Again(squeue::Entry),
}

impl<T: Buffers> Slots<T> {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            slots: (0..count).map(|_| None).collect(),
            iovecs: (0..count).map(|_| Vec::new()).collect(),
            free: (0..count).rev().collect(),
            fixed: 0,
            patient: false,
        }
    }

    pub(crate) fn under_way(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Takes an operation in and says what to ask of the kernel; gives it back where no slot is free.
    pub(crate) fn begin(&mut self, operation: Operation, held: T) -> Result<squeue::Entry, T> {
        let Some(&index) = self.free.last() else { return Err(held) };
        let total = held.pieces().iter().map(|piece| u64::from(piece.len)).sum();
        let slot = Slot { held, operation, total, done: 0, retries: 0 };
        let (Some(place), Some(iovecs)) =
            (self.slots.get_mut(index as usize), self.iovecs.get_mut(index as usize))
        else {
            return Err(slot.held);
        };
        let entry = entry(&slot, iovecs, self.fixed, self.patient).user_data(u64::from(index));
        *place = Some(slot);
        self.free.pop();
        Ok(entry)
    }

    /// Takes in what the kernel says of the operation in slot `index`; nothing where that slot is
    /// empty, which only a kernel that invents completions can bring about.
    pub(crate) fn progress(&mut self, index: u32, result: i32) -> Option<Progress<T>> {
        let place = self.slots.get_mut(index as usize)?;
        let slot = place.as_mut()?;
        let over = match u64::try_from(result) {
            Ok(moved) => {
                slot.done = slot.done.saturating_add(moved);
                let over = moved == 0 || slot.done >= slot.total || slot.operation.is_of_a_packet();
                over.then_some(Ok(slot.done))
            }
            Err(_) => {
                let errno = result.saturating_neg();
                slot.retries = slot.retries.saturating_add(1);
                let none_now = errno == libc::EAGAIN && !slot.operation.is_of_a_packet();
                // It was begun to be done at once, and is begun once more without.
                let sends = matches!(slot.operation, Operation::Send { .. });
                let unknown = sends && errno == libc::EOPNOTSUPP && slot.retries == 1;
                self.patient |= unknown;
                let passing = errno == libc::EINTR || none_now || unknown;
                (!passing || slot.retries > RETRIES).then_some(Err(errno))
            }
        };
        if let Some(result) = over {
            let Slot { held, operation, .. } = place.take()?;
            self.free.push(index);
            return Some(Progress::Over(Completed { held, operation, result }));
        }
        let iovecs = self.iovecs.get_mut(index as usize)?;
        Some(Progress::Again(
            entry(slot, iovecs, self.fixed, self.patient).user_data(u64::from(index)),
        ))
    }

    /// Forgets everything under way without freeing any of it: the kernel may still use it.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        std::mem::forget(std::mem::take(&mut self.iovecs));
        self.free.clear();
    }
}

/// What to ask of the kernel for what is left of `slot`.
fn entry<T: Buffers>(
    slot: &Slot<T>,
    iovecs: &mut Vec<iovec>,
    fixed: u16,
    patient: bool,
) -> squeue::Entry {
    match slot.operation {
        Operation::Read { file, offset } => {
            let file = file.fixed();
            let offset = offset.saturating_add(slot.done);
            match gather(slot, iovecs, fixed) {
                Shape::Fixed(base, len, index) => {
                    opcode::ReadFixed::new(file, base, len, index).offset(offset).build()
                }
                Shape::Single(base, len) => {
                    opcode::Read::new(file, base, len).offset(offset).build()
                }
                Shape::Several(first, count) => {
                    opcode::Readv::new(file, first, count).offset(offset).build()
                }
            }
        }
        Operation::Write { file, offset } => {
            let file = file.fixed();
            let offset = offset.saturating_add(slot.done);
            match gather(slot, iovecs, fixed) {
                Shape::Fixed(base, len, index) => {
                    opcode::WriteFixed::new(file, base, len, index).offset(offset).build()
                }
                Shape::Single(base, len) => {
                    opcode::Write::new(file, base, len).offset(offset).build()
                }
                Shape::Several(first, count) => {
                    opcode::Writev::new(file, first, count).offset(offset).build()
                }
            }
        }
        Operation::Receive { file } => {
            let file = file.fixed();
            match gather(slot, iovecs, 0) {
                Shape::Fixed(base, len, _) | Shape::Single(base, len) => {
                    opcode::Read::new(file, base, len).offset(NO_OFFSET).build()
                }
                Shape::Several(first, count) => {
                    opcode::Readv::new(file, first, count).offset(NO_OFFSET).build()
                }
            }
        }
        Operation::Send { file } => {
            let (file, flags) = (file.fixed(), if patient { 0 } else { AT_ONCE });
            match gather(slot, iovecs, 0) {
                Shape::Fixed(base, len, _) | Shape::Single(base, len) => {
                    opcode::Write::new(file, base, len).offset(NO_OFFSET).rw_flags(flags).build()
                }
                Shape::Several(first, count) => opcode::Writev::new(file, first, count)
                    .offset(NO_OFFSET)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Sync { file } => {
            opcode::Fsync::new(file.fixed()).flags(types::FsyncFlags::DATASYNC).build()
        }
        Operation::Allocate { file, mode, offset, len } => {
            opcode::Fallocate::new(file.fixed(), len).offset(offset).mode(mode).build()
        }
        Operation::Discard { file, offset, len } => {
            // The command's first eight bytes lie where other operations have `addr3`: the length.
            let mut command = [0; 16];
            if let Some(first) = command.first_chunk_mut::<8>() {
                *first = len.to_ne_bytes();
            }
            opcode::UringCmd16::new(file.fixed(), BLOCK_DISCARD)
                .addr(Some(offset))
                .cmd(command)
                .build()
        }
    }
}

/// How the bytes of a transfer are named to the kernel.
enum Shape {
    /// One run within a registered buffer.
    Fixed(*mut u8, u32, u16),
    /// One run.
    Single(*mut u8, u32),
    /// Several: an array and its length.
    Several(*const iovec, u32),
}

/// Names what is left of `slot`'s bytes, joining pieces that lie side by side: a kernel that is
/// handed one run has less to look up than one that is handed its pages one by one.
fn gather<T: Buffers>(slot: &Slot<T>, iovecs: &mut Vec<iovec>, fixed: u16) -> Shape {
    iovecs.clear();
    let mut skip = slot.done;
    let mut buffer = None;
    for piece in slot.held.pieces() {
        let len = u64::from(piece.len);
        if skip >= len {
            skip = skip.saturating_sub(len);
            continue;
        }
        let (base, left) = rest(piece, skip);
        skip = 0;
        let joined = iovecs.last_mut().filter(|last| {
            last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base && buffer == piece.fixed
        });
        if let Some(last) = joined {
            last.iov_len = last.iov_len.saturating_add(left);
        } else if iovecs.len() == MOST_IOVECS {
            break;
        } else {
            buffer = piece.fixed;
            iovecs.push(iovec { iov_base: base.cast(), iov_len: left });
        }
    }
    match (iovecs.as_slice(), buffer) {
        ([], _) => Shape::Single(std::ptr::null_mut(), 0),
        ([one], Some(index)) if index < fixed => {
            Shape::Fixed(one.iov_base.cast(), length(one), index)
        }
        ([one], _) => Shape::Single(one.iov_base.cast(), length(one)),
        (several, _) => {
            Shape::Several(several.as_ptr(), u32::try_from(several.len()).unwrap_or(u32::MAX))
        }
    }
}

/// What is left of a piece after its first `skip` bytes, which are fewer than it has.
fn rest(piece: &Piece, skip: u64) -> (*mut u8, usize) {
    let skip = u32::try_from(skip).unwrap_or(u32::MAX);
    (piece.base.wrapping_add(skip as usize), piece.len.saturating_sub(skip) as usize)
}

/// An iovec's length where one is all there is; joined runs beyond 4 GiB are cut, and resumed.
fn length(one: &iovec) -> u32 {
    u32::try_from(one.iov_len).unwrap_or(!4095)
}
