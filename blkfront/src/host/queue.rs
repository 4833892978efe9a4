//! One thread's own queue.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::HostError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring::Polling;

use crate::device::Ending;
use crate::host::disk::{Lane, Shared};
use crate::host::{Host, HostBuffer};
use crate::negotiate::DiskInfo;
use crate::request::{Completion, Rejected, Request};

/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 16;

/// A queue of a disk, for one thread at a time.
pub struct HostQueue<H: Host> {
    shared: Arc<Shared<H>>,
    number: usize,
    polling: Polling,
    began: Instant,
}

impl<H: Host> HostQueue<H> {
    pub(super) fn new(shared: Arc<Shared<H>>, number: usize) -> Self {
        Self { shared, number, polling: Polling::default(), began: Instant::now() }
    }

    /// Looks for completions for at most `most` nanoseconds before it sleeps: 0 sleeps at once,
    /// `u64::MAX` never.
    pub fn set_polling(&mut self, most: u64) {
        self.polling = Polling::new(most);
    }

    /// What the disk is at the moment.
    #[must_use]
    pub fn info(&self) -> Option<DiskInfo> {
        self.lane().and_then(|lane| lane.lock().info().copied())
    }

    /// Why the disk is over, if it is.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.shared.status().ending.clone()
    }

    /// How many requests it holds that were not taken back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.lane().map_or(0, |lane| lane.lock().held())
    }

    /// Takes a request to be done, and tells the backend with the next [`service`](Self::service).
    ///
    /// # Errors
    ///
    /// The request, with the reason why it was not taken.
    pub fn submit(&self, request: Request<HostBuffer<H>>) -> Result<(), Rejected<HostBuffer<H>>> {
        match self.lane() {
            Some(lane) => lane.lock().submit(request),
            None => Err(Rejected { request, reason: crate::request::Reason::NotConnected }),
        }
    }

    /// Takes as many of `requests` as there is room for, from the front.
    ///
    /// # Errors
    ///
    /// The first request that was refused for another reason than [`Reason::Full`](crate::Reason).
    pub fn submit_all(
        &self,
        requests: &mut std::collections::VecDeque<Request<HostBuffer<H>>>,
    ) -> Result<usize, Rejected<HostBuffer<H>>> {
        let Some(lane) = self.lane() else { return Ok(0) };
        let mut queue = lane.lock();
        let mut count = 0_usize;
        while let Some(request) = requests.pop_front() {
            match queue.submit(request) {
                Ok(()) => count = count.saturating_add(1),
                Err(Rejected { request, reason: crate::request::Reason::Full }) => {
                    requests.push_front(request);
                    break;
                }
                Err(rejected) => return Err(rejected),
            }
        }
        Ok(count)
    }

    /// Does what can be done now, and adds what has ended to `done`. Says how many that were.
    pub fn service(&self, done: &mut Vec<Completion<HostBuffer<H>>>) -> usize {
        let Some(lane) = self.lane() else { return 0 };
        let mut queue = lane.lock();
        if let Err(fault) = queue.service() {
            self.shared.report(fault);
        }
        let before = done.len();
        while let Some(completion) = queue.complete() {
            done.push(completion);
        }
        done.len().saturating_sub(before)
    }

    /// Before sleeping on the descriptors that [`with_fds`](Self::with_fds) gives: asks to be woken.
    /// Says whether there is something to do at once instead.
    #[must_use]
    pub fn arm(&self) -> bool {
        let Some(lane) = self.lane() else { return false };
        lane.bell.hush();
        lane.lock().arm()
    }

    /// Calls `wait` with the descriptors that poll readable when there is something to do.
    pub fn with_fds<T>(&self, wait: impl FnOnce(&[BorrowedFd<'_>]) -> T) -> T {
        let Some(lane) = self.lane() else { return wait(&[]) };
        // A reference of our own, so that the descriptor stays what it is while we sleep on it.
        let channel = lane.lock().channel().cloned();
        match &channel {
            Some(channel) => wait(&[lane.bell.as_fd(), channel.as_fd()]),
            None => wait(&[lane.bell.as_fd()]),
        }
    }

    /// Waits until at least `least` requests have ended, or all that are held, or `patience` is
    /// over; adds them to `done`, and says how many they are.
    ///
    /// # Errors
    ///
    /// The process cannot wait on file descriptors.
    pub fn wait(
        &mut self,
        done: &mut Vec<Completion<HostBuffer<H>>>,
        least: usize,
        patience: Option<Duration>,
    ) -> Result<usize, HostError> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let least = least.min(self.held());
        let mut count = 0_usize;
        let mut looks = 0_u32;
        loop {
            let now = self.service(done);
            count = count.saturating_add(now);
            if now > 0 {
                self.polling.busy(self.nanoseconds());
            }
            if count >= least {
                return Ok(count);
            }
            looks = looks.wrapping_add(1);
            if !looks.is_multiple_of(LOOKS) {
                std::hint::spin_loop();
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(count);
            }
            let nanoseconds = self.nanoseconds();
            if self.polling.look_again(nanoseconds) {
                // The backend may be waiting for this very core.
                std::thread::yield_now();
                continue;
            }
            if !self.arm() {
                self.sleep(deadline)?;
            }
            let woken = self.nanoseconds();
            self.polling.woken(woken);
        }
    }

    /// Does one request and waits for it. Requests submitted before end as well, and what they gave
    /// back is dropped: keep the queue to this, or to the calls above.
    ///
    /// # Errors
    ///
    /// The request was refused or failed, or the process cannot wait.
    pub fn run(
        &mut self,
        request: Request<HostBuffer<H>>,
    ) -> Result<HostBuffer<H>, Box<dyn std::error::Error + Send + Sync>> {
        let tag = request.tag;
        self.submit(request).map_err(|rejected| self.explain(rejected.reason))?;
        let mut done = Vec::new();
        loop {
            self.wait(&mut done, 1, None)?;
            for completion in done.drain(..) {
                if completion.request.tag == tag {
                    return match completion.result {
                        Ok(()) => Ok(completion.request.buffer),
                        Err(error) => Err(self.explain(error)),
                    };
                }
            }
        }
    }

    /// `error`, unless the disk's end says more.
    fn explain<E>(&self, error: E) -> Box<dyn std::error::Error + Send + Sync>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        match self.ending() {
            Some(ending) => ending.to_string().into(),
            None => Box::new(error),
        }
    }

    fn sleep(&self, deadline: Option<Instant>) -> Result<(), HostError> {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so that the last millisecond is not spent spinning.
                let left = left.saturating_add(Duration::from_micros(999));
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        self.with_fds(|fds| {
            let mut fds: Vec<PollFd<'_>> =
                fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => Ok(()),
                Err(errno) => Err(HostError::new("wait for the backend", errno as i32)),
            }
        })
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
