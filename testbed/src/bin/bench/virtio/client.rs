//! A driver that somebody else wrote (`blkio`): virtio-blk over vhost-user, or io_uring on a file.
#![expect(unsafe_code, reason = "blkio hands completions out in uninitialised memory")]

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use blkio::{Blkio, Blkioq, Completion, ReqFlags};

use super::{BLOCK, Offsets, Turn};

/// The most requests at a time.
pub(super) const MOST: usize = 128;
/// Entries of the virtqueue: each request takes three descriptors.
const ENTRIES: i32 = 512;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How answers are waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Asleep, until an event descriptor is written to.
    Asleep,
    /// Looking at the ring all the time.
    Looking,
}

/// A disk that is in use.
pub(super) struct Client {
    queue: Blkioq,
    /// Behind the queue: it is to go last.
    _device: Blkio,
    memory: usize,
    offsets: Offsets,
}

fn told(error: blkio::Error) -> anyhow::Error {
    anyhow!("blkio: {error}")
}

impl Client {
    /// The disk that is served over vhost-user at `socket`.
    pub(super) fn machine(socket: &Path, waits: Waits) -> Result<Self> {
        let mut device = Blkio::new("virtio-blk-vhost-user").map_err(told)?;
        let path = socket.to_str().context("a socket's path is UTF-8")?;
        device.set_str("path", path).map_err(told)?;
        device.connect().map_err(told).with_context(|| path.to_owned())?;
        let size = device.get_u64("capacity").map_err(told)?;
        device.set_i32("queue-size", ENTRIES).map_err(told)?;
        let looking = waits == Waits::Looking;
        device.set_i32("num-queues", i32::from(!looking)).map_err(told)?;
        device.set_i32("num-poll-queues", i32::from(looking)).map_err(told)?;
        Self::start(device, size)
    }

    /// The file itself, past the page cache or through it.
    pub(super) fn file(path: &Path, direct: bool) -> Result<Self> {
        let mut device = Blkio::new("io_uring").map_err(told)?;
        let name = path.to_str().context("a file's path is UTF-8")?;
        device.set_str("path", name).map_err(told)?;
        device.set_bool("direct", direct).map_err(told)?;
        device.connect().map_err(told).with_context(|| name.to_owned())?;
        let size = device.get_u64("capacity").map_err(told)?;
        Self::start(device, size)
    }

    fn start(mut device: Blkio, size: u64) -> Result<Self> {
        let mut queues = device.start().map_err(told)?;
        let queue = queues.queues.pop().or_else(|| queues.poll_queues.pop());
        let queue = queue.context("a device has a queue")?;
        let memory = device.alloc_mem_region(MOST.saturating_mul(BLOCK)).map_err(told)?;
        device.map_mem_region(&memory).map_err(told)?;
        Ok(Self { queue, _device: device, memory: memory.addr, offsets: Offsets::of(size) })
    }

    fn ask(&mut self, write: bool, slot: usize) {
        let buffer = self.memory.saturating_add(slot.saturating_mul(BLOCK)) as *mut u8;
        let at = self.offsets.next();
        match write {
            true => self.queue.write(at, buffer, BLOCK, slot, ReqFlags::empty()),
            false => self.queue.read(at, buffer, BLOCK, slot, ReqFlags::empty()),
        }
    }

    /// Keeps `depth` requests under way for `time`, and waits for the last of them.
    pub(super) fn drive(&mut self, write: bool, depth: usize, time: Duration) -> Result<Turn> {
        let mut room: Vec<MaybeUninit<Completion>> = Vec::new();
        room.resize_with(depth.min(MOST), MaybeUninit::uninit);
        let begun = Instant::now();
        (0..room.len()).for_each(|slot| self.ask(write, slot));
        let (mut under_way, mut requests) = (room.len(), 0_u64);
        while under_way > 0 {
            let mut patience = PATIENCE;
            let count = self.queue.do_io(&mut room, 1, Some(&mut patience), None);
            let count = count.map_err(told).context("wait for an answer")?;
            let goes_on = begun.elapsed() < time;
            for done in room.iter_mut().take(count) {
                // SAFETY: `do_io` says that it has filled so many from the first one on.
                let done = unsafe { done.assume_init_read() };
                ensure!(done.ret == 0, "a request failed: {}", done.ret);
                requests = requests.saturating_add(1);
                match goes_on {
                    true => self.ask(write, done.user_data),
                    false => under_way = under_way.saturating_sub(1),
                }
            }
        }
        Ok(Turn { requests, took: begun.elapsed() })
    }
}
