//! A disk for a virtual machine that another process runs.
//!
//! Before: `hypervisor::vhost_user`, which says when queues start and stop. After: the queues.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::Error;
use hypervisor::backend::Waker;
use hypervisor::vhost_user::{self, Parts};
use ring::wire::virtio_blk::ID_BYTES;

use crate::connect::vhost_user as handshake;
use crate::device::Disks;
use crate::device::queues::{Counted, described, lock, reason};
use crate::queue::{Command, Handle, MachineParts, spawn_for_machine};
use crate::receive::VirtioQueue;
use crate::stats::Stats;

/// [`Disks`], as a virtual machine's device.
#[derive(Debug)]
pub struct MachineDisk {
    disks: Arc<Disks>,
    queues: u16,
    serial: [u8; ID_BYTES],
    waker: Waker,
}

impl MachineDisk {
    /// `disks`, with up to `queues` queues, under the name `serial`. `waker` is woken when a queue ends before
    /// it was told to.
    #[must_use]
    pub fn new(disks: Arc<Disks>, queues: u16, serial: &str, waker: Waker) -> Self {
        let queues = queues.clamp(1, handshake::MAX_QUEUES);
        Self { disks, queues, serial: handshake::serial(serial), waker }
    }
}

impl vhost_user::Device for MachineDisk {
    type Queue = MachineQueue;

    fn features(&self) -> u64 {
        handshake::features(&described(&self.disks.medium, self.disks.manner))
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn configuration(&self) -> Vec<u8> {
        let disk = described(&self.disks.medium, self.disks.manner);
        let hints = self.disks.medium.geometry().hints;
        handshake::configuration(&disk, hints, self.queues).encode().to_vec()
    }

    fn start(&self, parts: Parts) -> Result<MachineQueue, Error> {
        let (queue, size) = (parts.number, parts.size);
        let position = Arc::new(AtomicU16::new(parts.taken));
        let requests = VirtioQueue::attach(&parts, self.serial, Arc::clone(&position))?;
        let owed = requests.owed();
        if owed > 0 {
            tracing::info!(queue, owed, "going on with another process's queue");
        }
        let stats = Arc::new(Stats::default());
        let made = MachineParts {
            name: format!("queue-{queue}"),
            requests,
            memory: parts.memory,
            bell: parts.bell,
            serving: Arc::clone(&self.disks.serving),
            stats: Arc::clone(&stats),
        };
        let broken = Arc::new(Mutex::new(None));
        let (medium, counted) = (self.disks.medium.clone(), Arc::clone(&self.disks.counted));
        let (first, waker) = (Arc::clone(&broken), self.waker.clone());
        let handle = spawn_for_machine(
            made,
            move || {
                let engine = medium.engine(queue, size)?;
                lock(&counted).engine = Some(engine.name());
                Ok(engine)
            },
            move |ended| {
                if let Some(error) = reason(ended) {
                    *first.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    waker.wake();
                }
            },
        )?;
        lock(&self.disks.counted).now.push((Arc::clone(&stats), size));
        let counted = Arc::clone(&self.disks.counted);
        Ok(MachineQueue { handle: Some(handle), position, broken, stats, counted })
    }
}

/// A queue of a virtual machine's. Dropping it ends it as stopping does.
#[derive(Debug)]
pub struct MachineQueue {
    handle: Option<Handle>,
    position: Arc<AtomicU16>,
    broken: Arc<Mutex<Option<Error>>>,
    stats: Arc<Stats>,
    counted: Arc<Mutex<Counted>>,
}

impl vhost_user::Queue for MachineQueue {
    fn stop(mut self) -> u16 {
        self.end();
        self.position.load(Ordering::Acquire)
    }

    fn failed(&mut self) -> Option<Error> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn wake(&self) {
        self.handle.iter().for_each(Handle::wake);
    }
}

impl MachineQueue {
    fn end(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        handle.tell(Command::Drain);
        // How it ended was told by the queue itself.
        let _ = handle.join();
        let mut counted = lock(&self.counted);
        counted.now.retain(|(stats, _)| !Arc::ptr_eq(stats, &self.stats));
        counted.before.merge(&self.stats.snapshot());
    }
}

impl Drop for MachineQueue {
    fn drop(&mut self) {
        self.end();
    }
}
