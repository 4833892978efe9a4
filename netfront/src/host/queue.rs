//! One thread's own queue.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::HostError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring::Polling;

use crate::device::Ending;
use crate::host::Host;
use crate::host::interface::{Lane, Shared};
use crate::negotiate::NetInfo;
use crate::queue::Queue;

/// Looks for packets between two looks at the clock, and offers of the processor to others. Few, for a look
/// at a TAP is a system call, and others may have the packets that are looked for.
const LOOKS: u32 = 4;

/// A queue of an interface, for one thread at a time.
pub struct HostQueue<H: Host> {
    shared: Arc<Shared<H>>,
    number: usize,
    polling: Polling,
    began: Instant,
    looks: u32,
}

impl<H: Host> HostQueue<H> {
    pub(super) fn new(shared: Arc<Shared<H>>, number: usize) -> Self {
        Self { shared, number, polling: Polling::default(), began: Instant::now(), looks: 0 }
    }

    /// Looks for packets for at most `most` nanoseconds before it sleeps: 0 sleeps at once,
    /// `u64::MAX` never.
    pub fn set_polling(&mut self, most: u64) {
        self.polling = Polling::new(most);
    }

    /// Its number, from 0.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// What the interface is at the moment.
    #[must_use]
    pub fn info(&self) -> Option<NetInfo> {
        self.shared.status().info
    }

    /// Why the interface is over, if it is.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.shared.status().ending.clone()
    }

    /// Sends and receives: calls `work` with the queue, and shows the backend what that did. Nothing in
    /// it may wait, for meanwhile the device's state cannot change.
    pub fn with<T>(&self, work: impl FnOnce(&mut Queue<H>) -> T) -> Option<T> {
        let lane = self.lane()?;
        let mut queue = lane.lock();
        let done = work(&mut queue);
        queue.flush();
        if let Some(fault) = queue.fault() {
            self.shared.report(fault.clone());
        }
        drop(queue);
        if self.number == 0
            && let Err(fault) = self.shared.lanes().control().poll()
        {
            self.shared.report(fault);
        }
        Some(done)
    }

    /// There was work: it may pay to look for more.
    pub fn worked(&mut self) {
        self.looks = 0;
        let now = self.nanoseconds();
        self.polling.busy(now);
    }

    /// There was no work: looks again soon, or sleeps until there is a packet, room to send where that
    /// is waited for, something to read from one of `others`, news of the device, or `deadline`.
    ///
    /// # Errors
    ///
    /// The process cannot wait on file descriptors.
    pub fn rest(
        &mut self,
        room: bool,
        others: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<(), HostError> {
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(LOOKS) {
            std::hint::spin_loop();
            return Ok(());
        }
        let now = self.nanoseconds();
        if self.polling.look_again(now) {
            // The backend may be waiting for this very core.
            std::thread::yield_now();
            return Ok(());
        }
        if !self.arm(room) {
            self.sleep(others, deadline)?;
            if let Some(lane) = self.lane() {
                lane.bell.hush();
            }
        }
        let now = self.nanoseconds();
        self.polling.woken(now);
        Ok(())
    }

    fn arm(&self, room: bool) -> bool {
        self.lane().is_some_and(|lane| lane.lock().arm(room))
    }

    fn sleep(&self, others: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<(), HostError> {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so that the last millisecond is not spent spinning.
                let left = left.saturating_add(Duration::from_micros(999));
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let Some(lane) = self.lane() else { return Ok(()) };
        // References of our own, so that the descriptors stay what they are while we sleep on them.
        let channels = lane.lock().channels().map(|both| both.map(Arc::clone));
        let control = match self.number {
            0 => self.shared.lanes().control().channel().cloned(),
            _ => None,
        };
        let mut fds: Vec<PollFd<'_>> =
            others.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let mut add = |fd| fds.push(PollFd::new(fd, PollFlags::POLLIN));
        add(lane.bell.as_fd());
        if let Some([rx, tx]) = &channels {
            add(rx.as_fd());
            if !Arc::ptr_eq(rx, tx) {
                add(tx.as_fd());
            }
        }
        if let Some(control) = &control {
            add(control.as_fd());
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(HostError::new("wait for the backend", errno as i32)),
        }
    }

    fn lane(&self) -> Option<&Lane<H>> {
        self.shared.lanes().lane(self.number)
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl<H: Host> Drop for HostQueue<H> {
    fn drop(&mut self) {
        self.shared.lanes().give_back(self.number);
    }
}
