//! What a device tells its queues, and how a queue ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use hypervisor::{HostError, PeerFault};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring::Waiting;

use super::stall::{OnError, Stalls};
use crate::durability::Standing;
use crate::policy::acquire::{Mapping, Reach};
use crate::throttle::Limits;
use crate::validate::Rules;

/// What the queues of one device have in common. It outlives connections: a frontend that comes
/// back finds the same.
#[derive(Debug)]
#[non_exhaustive]
pub struct Serving {
    /// What requests are checked against.
    pub rules: Rules,
    /// The disk's size in sectors of 512 bytes. May be changed at any time; requests that were taken
    /// before are not checked again.
    pub sectors: AtomicU64,
    /// The device's limits. May be changed at any time; wake the queues after it.
    pub limits: Limits,
    /// Whether flushes can still succeed.
    pub standing: Standing,
    /// How guest pages are reached; by the frontend's features where nothing is said.
    pub reach: Option<Reach>,
    /// What it costs to map them for a single request.
    pub mapping: Mapping,
    /// How queues wait for work.
    pub waiting: Waiting,
    /// How long a queue keeps mapped, or allocated, what an idle guest does not use.
    pub idle: Duration,
    /// What is done about a request that the medium refuses.
    pub on_error: OnError,
    /// What is kept of those.
    pub stalls: Stalls,
}

impl Serving {
    /// A disk of `sectors` sectors of 512 bytes, without limits.
    #[must_use]
    pub fn new(rules: Rules, sectors: u64) -> Self {
        Self {
            rules,
            sectors: AtomicU64::new(sectors),
            limits: Limits::default(),
            standing: Standing::default(),
            reach: None,
            mapping: Mapping::default(),
            waiting: Waiting::default(),
            idle: Duration::from_secs(10),
            on_error: OnError::default(),
            stalls: Stalls::default(),
        }
    }
}

/// What a queue is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Serve.
    Run = 0,
    /// Finish and answer what was taken, take nothing more, and wait.
    Pause = 1,
    /// Finish and answer what was taken, then end. Limits hold nothing up any more.
    Drain = 2,
    /// End now. What was taken stays unanswered; what the medium is doing is still waited for, since
    /// it uses the guest's pages.
    Stop = 3,
}

/// The line from a device to one of its queues.
#[derive(Debug)]
pub struct Control {
    command: AtomicU8,
    wake: EventFd,
    /// Whether `wake` may be readable.
    woken: AtomicBool,
}

impl Control {
    /// A line that says [`Command::Run`].
    ///
    /// # Errors
    ///
    /// There are no descriptors left.
    pub fn new() -> Result<Arc<Self>, HostError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)
            .map_err(|errno| HostError::new("make a queue's event descriptor", errno as i32))?;
        let command = AtomicU8::new(Command::Run as u8);
        Ok(Arc::new(Self { command, wake, woken: AtomicBool::new(false) }))
    }

    /// Tells the queue what to do from now on.
    pub fn tell(&self, command: Command) {
        self.command.store(command as u8, Ordering::Release);
        self.wake();
    }

    /// Makes the queue look around: at limits that were changed, for one.
    pub fn wake(&self) {
        // Fails only where the counter is full, and then the descriptor is readable already.
        let _ = self.wake.write(1);
        // Only now: whoever finds it set finds something to read.
        self.woken.store(true, Ordering::Release);
    }

    /// What the queue is to do.
    #[inline]
    #[must_use]
    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Acquire) {
            0 => Command::Run,
            1 => Command::Pause,
            2 => Command::Drain,
            _ => Command::Stop,
        }
    }

    /// Readable when there is something to look at.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes it unreadable again. Before looking, not after it.
    pub(crate) fn heard(&self) {
        if !self.woken.swap(false, Ordering::AcqRel) {
            // Somebody else woke the queue; or it is being told in this moment, and wakes once more.
            return;
        }
        loop {
            match self.wake.read() {
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    }
}

/// How a queue's thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// Everything that was taken is answered.
    Drained,
    /// It was told to stop.
    Stopped,
    /// The guest broke the ring's rules. Its device is to be ended.
    Fault(PeerFault),
    /// This machine failed us. What was taken was answered with errors.
    Failed(HostError),
}
