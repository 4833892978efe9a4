//! The disk that the tests use: the real queues and the real session, in this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkback::device::{Disks, MachineDisk, Message, Policy};
use blkback::engine::Medium;
use blkback::engine::memory::Disk;
use hypervisor::HostError;
use hypervisor::backend::{Board, Slot};
use hypervisor::vhost_user::{Door, Serving};

/// No test waits longer for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const SIZE: u64 = 64 << 20;

/// A disk that is served.
pub(crate) struct Served {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) disks: Arc<Disks>,
    pub(crate) board: Board,
    pub(crate) slot: Slot<Message>,
    thread: Option<JoinHandle<Result<(), HostError>>>,
}

impl Served {
    /// A disk in memory.
    pub(crate) fn new() -> Self {
        let medium = Medium::Memory(Arc::new(Disk::new(SIZE, 512).unwrap()));
        Self::over(Disks::new(medium, None, &Policy::default()))
    }

    pub(crate) fn over(disks: Disks) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disks = Arc::new(disks);
        let serving = Serving::new(Door::listen(&folder.path().join("sock")).unwrap()).unwrap();
        let (board, slot) = (serving.board(), serving.slot());
        let device = MachineDisk::new(Arc::clone(&disks), 4, "SERIAL", serving.waker());
        let theirs = Arc::clone(&disks);
        let thread =
            std::thread::spawn(move || serving.run(&device, |resize| theirs.resize(resize)));
        Self { folder, disks, board, slot, thread: Some(thread) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    /// Waits until a fault of this name was counted.
    pub(crate) fn until_fault(&self, name: &str) {
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
