//! A disk over vhost-user, used by a driver and a monitor's end that somebody else wrote (`virtio-driver`), and
//! by monitors that break the protocol.
#![expect(unsafe_code, reason = "memory that is shared with a device")]

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkback::device::{Disks, MachineDisk, Message, Policy};
use blkback::engine::Medium;
use blkback::engine::memory::Disk;
use hypervisor::HostError;
use hypervisor::backend::{Board, Slot};
use hypervisor::vhost_user::{Door, Serving};
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 64 << 20;

/// A disk in memory that is served.
struct Served {
    folder: tempfile::TempDir,
    disks: Arc<Disks>,
    board: Board,
    slot: Slot<Message>,
    thread: Option<JoinHandle<Result<(), HostError>>>,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let medium = Medium::Memory(Arc::new(Disk::new(SIZE, 512).unwrap()));
        let disks = Arc::new(Disks::new(medium, None, &Policy::default()));
        let serving = Serving::new(Door::listen(&folder.path().join("sock")).unwrap()).unwrap();
        let (board, slot) = (serving.board(), serving.slot());
        let device = MachineDisk::new(Arc::clone(&disks), 4, "SERIAL", serving.waker());
        let theirs = Arc::clone(&disks);
        let thread =
            std::thread::spawn(move || serving.run(&device, |resize| theirs.resize(resize)));
        Self { folder, disks, board, slot, thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    /// Waits until a fault of this name was counted.
    fn until_fault(&self, name: &str) {
        let begun = Instant::now();
        while !self.board.read().history.faults.contains_key(name) {
            assert!(begun.elapsed() < PATIENCE, "never {name}: {:?}", self.board.read().history);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.slot.put(Message::Leave { force: false, reply: None });
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.unwrap().is_ok());
    }
}

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
    // Also VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ and VIRTIO_BLK_F_DISCARD.
    let features = features.bits() | 1 << 9 | 1 << 12 | 1 << 13;
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

/// A message with `payload` and no descriptors.
fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let words = [request, flags, len].map(u32::to_ne_bytes).concat();
    [words, payload.to_vec()].concat()
}

#[test]
fn monitors_that_break_the_protocol_are_let_go_by_name() {
    let served = Served::new();
    let number = |value: u64| value.to_ne_bytes().to_vec();
    let pair = |a: u32, b: u32| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let long = message(2, 1, &[]);
    let long = [long[..8].to_vec(), 5000_u32.to_ne_bytes().to_vec()].concat();
    for (bytes, name) in [
        (message(1, 0, &[]), "message_flags"),
        (message(1, 5, &[]), "message_flags"),
        (long, "message_length"),
        (message(99, 1, &[]), "message_unknown"),
        (message(2, 1, &[1, 2]), "message_too_short"),
        (message(2, 1, &number(1 << 63)), "features_not_offered"),
        (message(16, 1, &number(1 << 63)), "protocol_features_not_offered"),
        (message(5, 1, &pair(1, 0)), "memory_descriptors"),
        (message(37, 1, &[0; 40]), "memory_descriptors"),
        (message(38, 1, &[0; 40]), "memory_not_there"),
        (message(8, 1, &pair(4, 128)), "queue_number"),
        (message(10, 1, &pair(0, 70000)), "queue_base"),
        (message(12, 1, &number(1 << 8)), "queue_without_kick"),
        (message(12, 1, &number(0)), "queue_descriptors"),
        (message(24, 1, &[[0; 4], [1; 4], [0; 4]].concat()), "configuration_length"),
        (message(25, 1, &[0; 12]), "configuration_not_writable"),
        (message(31, 1, &[0; 24]), "inflight_size"),
    ] {
        let mut socket = UnixStream::connect(served.path()).unwrap();
        socket.write_all(&bytes).unwrap();
        served.until_fault(name);
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{name}: an answer: {rest:?}");
    }
    // And the next one is served.
    let mut socket = UnixStream::connect(served.path()).unwrap();
    socket.write_all(&message(17, 1, &[])).unwrap();
    let mut answer = [0; 20];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[12..], 4_u64.to_ne_bytes());
}
