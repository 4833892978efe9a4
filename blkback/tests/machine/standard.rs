//! A driver and a monitor's end that somebody else wrote (`virtio-driver`).

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Instant;

use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

use crate::served::{PATIENCE, SIZE, Served};

/// Memory that the device reaches, for data.
struct Data {
    file: std::fs::File,
    address: *mut u8,
    len: usize,
}

impl Data {
    fn new(len: usize) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len as u64).unwrap();
        let size = std::num::NonZeroUsize::new(len).unwrap();
        let protection =
            nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
        let flags = nix::sys::mman::MapFlags::MAP_SHARED;
        // SAFETY: no address is asked for, so no other mapping is touched.
        let address = unsafe { nix::sys::mman::mmap(None, size, protection, flags, &file, 0) };
        Self { address: address.unwrap().as_ptr().cast(), file, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as the process runs; the device writes there while it is asked to only.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }
}

fn connect(path: &Path) -> Box<VirtioBlkTransport> {
    let features = VirtioFeatureFlags::VERSION_1
        | VirtioFeatureFlags::RING_EVENT_IDX
        | VirtioFeatureFlags::RING_INDIRECT_DESC;
    // Also VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_DISCARD and VIRTIO_BLK_F_WRITE_ZEROES.
    let features = features.bits() | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14;
    Box::new(VhostUser::new(path.to_str().unwrap(), features).unwrap())
}

/// Waits for one completion.
fn complete(queue: &mut VirtioBlkQueue<'_, u32>) -> (u32, i32) {
    let begun = Instant::now();
    loop {
        if let Some(done) = queue.completions().next() {
            return (done.context, done.ret);
        }
        assert!(begun.elapsed() < PATIENCE, "no completion");
        std::thread::yield_now();
    }
}

#[test]
fn another_implementation_reads_and_writes() {
    let served = Served::new();
    // One after the other: a monitor that goes away leaves a device that the next one can use.
    for round in 0..3_u8 {
        let mut transport = connect(&served.path());
        let config = transport.get_config().unwrap();
        let (capacity, queues) = (config.capacity, config.num_queues);
        assert_eq!((capacity.to_native(), queues.to_native()), (SIZE / 512, 4));
        let mut data = Data::new(1 << 20);
        let mut queues = VirtioBlkQueue::<u32>::setup_queues(transport.as_mut(), 2, 64).unwrap();
        transport
            .map_mem_region(data.address as usize, data.len, data.file.as_raw_fd(), 0)
            .unwrap();
        let bells = [0, 1].map(|n| transport.get_submission_notifier(n));
        let half = data.len / 2;
        let pattern: Vec<u8> = (0..half).map(|n| (n as u8) ^ (n >> 8) as u8 ^ round).collect();
        data.bytes()[..half].copy_from_slice(&pattern);
        for (n, part) in data.bytes()[..half].chunks(4096 * 16).enumerate() {
            queues[0].write(n as u64 * 65536, part, n as u32).unwrap();
        }
        bells[0].notify().unwrap();
        let mut done: Vec<_> = (0..8).map(|_| complete(&mut queues[0])).collect();
        done.sort_unstable();
        assert_eq!(done, (0..8).map(|n| (n, 0)).collect::<Vec<_>>());
        queues[1].flush(7).unwrap();
        bells[1].notify().unwrap();
        assert_eq!(complete(&mut queues[1]), (7, 0));
        let (_, into) = data.bytes().split_at_mut(half);
        queues[1].read(0, into, 9).unwrap();
        bells[1].notify().unwrap();
        assert_eq!(complete(&mut queues[1]), (9, 0));
        assert!(data.bytes()[half..] == pattern, "what was written comes back");
        queues[0].discard(0, 65536, 1).unwrap();
        // Behind the disk's end, and data where there is no memory.
        queues[0].read(SIZE, &mut data.bytes()[..512], 2).unwrap();
        let mut nowhere = vec![0; 512];
        queues[0].read(0, &mut nowhere, 3).unwrap();
        queues[0].read(0, &mut data.bytes()[..512], 4).unwrap();
        bells[0].notify().unwrap();
        let mut done: Vec<_> = (0..4).map(|_| complete(&mut queues[0])).collect();
        done.sort_unstable();
        assert_eq!(done, [(1, 0), (2, -libc::EIO), (3, -libc::EIO), (4, 0)]);
        assert!(data.bytes()[..512].iter().all(|byte| *byte == 0), "it was discarded");
    }
    let total = served.disks.total();
    assert_eq!((total.writes, total.flushes, total.discards), (24, 3, 3));
    assert_eq!(total.refused.get("outside_memory"), Some(&3));
    assert_eq!(served.board.read().history.connections, 3);
}

#[test]
fn another_implementation_writes_zeroes() {
    let served = Served::new();
    let mut transport = connect(&served.path());
    let config = transport.get_config().unwrap();
    let (most, ranges) = (config.max_write_zeroes_sectors, config.max_write_zeroes_seg);
    assert_eq!((most.to_native(), ranges.to_native()), (1 << 18, 64));
    assert_eq!(config.write_zeroes_may_unmap, 1);
    let mut data = Data::new(1 << 20);
    let mut queues = VirtioBlkQueue::<u32>::setup_queues(transport.as_mut(), 1, 64).unwrap();
    transport.map_mem_region(data.address as usize, data.len, data.file.as_raw_fd(), 0).unwrap();
    let (bell, queue) = (transport.get_submission_notifier(0), &mut queues[0]);
    let one = |queue: &mut VirtioBlkQueue<'_, u32>| {
        bell.notify().unwrap();
        complete(queue).1
    };
    for unmap in [false, true] {
        data.bytes().fill(7);
        queue.write(0, data.bytes(), 0).unwrap();
        assert_eq!(one(queue), 0);
        queue.write_zeroes(4096, 512 * 200, unmap, 1).unwrap();
        assert_eq!(one(queue), 0);
        queue.read(0, data.bytes(), 2).unwrap();
        assert_eq!(one(queue), 0);
        let expected = |at: usize| if (4096..4096 + 512 * 200).contains(&at) { 0 } else { 7 };
        assert!(data.bytes().iter().enumerate().all(|(at, byte)| *byte == expected(at)));
    }
    // Behind the disk's end, and longer than it said that a range may be.
    queue.write_zeroes(SIZE - 512, 1024, false, 3).unwrap();
    assert_eq!(one(queue), -libc::EIO);
    queue.write_zeroes(0, (1 << 27) + 512, false, 4).unwrap();
    assert_eq!(one(queue), -libc::EIO);
    drop(queues);
    drop(transport);
    let total = served.disks.total();
    assert_eq!((total.zeroes, total.bytes_zeroed), (2, 2 * 512 * 200));
    let refused = |name: &str| total.refused.get(name).copied();
    assert_eq!((refused("past_end"), refused("range_too_long")), (Some(1), Some(1)));
}
