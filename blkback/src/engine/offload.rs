//! Requests that would hold the queue's thread up.
//!
//! Secure erase has no asynchronous form, nor has discard before Linux 6.12, and zeroes that the kernel does not
//! make are written, however many. One thread, started with the first such request, makes the calls one after
//! another and raises an event for each.
//! What the requests hold stays with the queue; the thread gets numbers only.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use hypervisor::HostError;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::engine::zero::{self, Manner};
use crate::image::block;

/// What is to be done to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Discard it, on a block device.
    Discard { secure: bool },
    /// Zero it, and free nothing.
    Zero,
}

struct Job {
    number: u64,
    task: Task,
    offset: u64,
    len: u64,
}

/// The thread and what it has not answered yet.
pub(super) struct Offload<T> {
    /// `None` only while being dropped.
    jobs: Option<Sender<Job>>,
    answers: Receiver<(u64, Result<u64, i32>)>,
    raised: File,
    waiting: Vec<(u64, T)>,
    next: u64,
    thread: Option<JoinHandle<()>>,
}

impl<T> Offload<T> {
    /// Starts the thread for `file`.
    pub(super) fn new(file: &File) -> Result<Self, HostError> {
        let failed = |error: &std::io::Error| {
            HostError::from_io("start a thread to discard and to zero", error)
        };
        // The same open file description: what the thread writes, the queue's flushes vouch for.
        let file = file.try_clone().map_err(|error| failed(&error))?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| HostError::new("make an event to discard with", errno as i32))?;
        let raised = File::from(std::os::fd::OwnedFd::from(event));
        let mut raise = raised.try_clone().map_err(|error| failed(&error))?;
        let (jobs, to_do) = channel::<Job>();
        let (answer, answers) = channel();
        let work = move || {
            for Job { number, task, offset, len } in to_do {
                let done = match task {
                    Task::Discard { secure } => {
                        block::discard(&file, offset, len, secure).map(|()| 0)
                    }
                    Task::Zero => zero::in_turn(&file, offset, len, Manner::Range),
                };
                if answer.send((number, done)).is_err() {
                    return;
                }
                // A counter that is full has been raised already.
                let _ = raise.write(&1_u64.to_ne_bytes());
            }
        };
        let thread = std::thread::Builder::new()
            .name("discard".into())
            .spawn(work)
            .map_err(|error| failed(&error))?;
        let thread = Some(thread);
        Ok(Self { jobs: Some(jobs), answers, raised, waiting: Vec::new(), next: 0, thread })
    }

    /// What becomes readable when there is an answer.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.raised.as_fd()
    }

    /// Lowers the event. To be called before [`done`](Self::done) is asked for all there is.
    pub(super) fn lower(&mut self) {
        // That it was not raised is no matter.
        let _ = self.raised.read(&mut [0; 8]);
    }

    pub(super) fn under_way(&self) -> usize {
        self.waiting.len()
    }

    /// Has `task` done to `len` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// The thread is gone; what was held comes back.
    pub(super) fn begin(&mut self, task: Task, offset: u64, len: u64, held: T) -> Result<(), T> {
        let number = self.next;
        let job = Job { number, task, offset, len };
        match &self.jobs {
            Some(jobs) if jobs.send(job).is_ok() => {}
            _ => return Err(held),
        }
        self.next = number.wrapping_add(1);
        self.waiting.push((number, held));
        Ok(())
    }

    /// One request that is done, with what it held.
    pub(super) fn done(&mut self) -> Option<(T, Result<u64, i32>)> {
        let (number, result) = self.answers.try_recv().ok()?;
        let at = self.waiting.iter().position(|(waiting, _)| *waiting == number)?;
        Some((self.waiting.swap_remove(at).1, result))
    }
}

impl<T> Drop for Offload<T> {
    fn drop(&mut self) {
        // Ends the thread's loop after what it was given; the device is not let go of before.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
