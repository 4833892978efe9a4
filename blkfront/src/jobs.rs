//! What callers asked for and is not done yet.
//!
//! A job is one request of a caller. It goes to the ring in one or more parts, as many as the
//! backend's limits make of it, and is done when the last of them is. The table is made once, and
//! its size is the queue's depth: a caller that asks for more is told that the queue is full.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::request::{Completion, IoError, Request};

/// One request of a caller.
pub(crate) struct Job<B> {
    pub(crate) request: Request<B>,
    /// Bytes of it that were made into parts.
    pub(crate) cursor: usize,
    /// Parts that were made and are not answered.
    pub(crate) outstanding: u32,
    /// Whether there are parts yet to be made.
    pub(crate) more: bool,
    pub(crate) result: Result<(), IoError>,
}

/// All jobs of a queue.
pub(crate) struct Jobs<B> {
    slots: Box<[Option<Job<B>>]>,
    free: Vec<u32>,
    /// Jobs with parts yet to be made, in the order in which they came.
    waiting: VecDeque<u32>,
    /// Jobs that are done and not taken.
    done: VecDeque<u32>,
}

impl<B> Jobs<B> {
    pub(crate) fn new(depth: u32) -> Self {
        let room = depth as usize;
        Self {
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(room),
            done: VecDeque::with_capacity(room),
        }
    }

    /// How many are not taken back by their callers.
    pub(crate) fn len(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// How many are done and not taken.
    pub(crate) fn finished(&self) -> usize {
        self.done.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Job<B>> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    /// Takes a request in, to be issued; or as done with `already`.
    ///
    /// # Errors
    ///
    /// The request, where there is no room.
    pub(crate) fn insert(
        &mut self,
        request: Request<B>,
        already: Option<Result<(), IoError>>,
    ) -> Result<(), Request<B>> {
        let Some(index) = self.free.pop() else { return Err(request) };
        let Some(slot) = self.slots.get_mut(index as usize) else { return Err(request) };
        let more = already.is_none();
        let result = already.unwrap_or(Ok(()));
        *slot = Some(Job { request, cursor: 0, outstanding: 0, more, result });
        if more {
            self.waiting.push_back(index)
        } else {
            self.done.push_back(index)
        }
        Ok(())
    }

    /// The job whose next part is to be made.
    pub(crate) fn next(&self) -> Option<u32> {
        self.waiting.front().copied()
    }

    /// All parts of the job that [`next`](Self::next) gave are made.
    pub(crate) fn made(&mut self) {
        if let Some(job) = self.waiting.pop_front().and_then(|index| self.get_mut(index)) {
            job.more = false;
        }
    }

    /// One part of a job was answered. After an error the rest of the job is not even tried.
    pub(crate) fn part_done(&mut self, index: u32, result: Result<(), IoError>) {
        let Some(job) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else { return };
        job.outstanding = job.outstanding.saturating_sub(1);
        if result.is_err() {
            job.result = job.result.and(result);
            if job.more {
                job.more = false;
                self.waiting.retain(|waiting| *waiting != index);
            }
        }
        if job.outstanding == 0 && !job.more {
            self.done.push_back(index);
        }
    }

    /// Ends everything that is not done with `error`.
    pub(crate) fn fail(&mut self, error: IoError) {
        self.waiting.clear();
        for (index, slot) in (0_u32..).zip(self.slots.iter_mut()) {
            if let Some(job) = slot
                && (job.more || job.outstanding > 0)
            {
                job.more = false;
                job.outstanding = 0;
                job.result = job.result.and(Err(error));
                self.done.push_back(index);
            }
        }
    }

    /// Takes a job that is done.
    pub(crate) fn take(&mut self) -> Option<Completion<B>> {
        let index = self.done.pop_front()?;
        let job = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(Completion { request: job.request, result: job.result })
    }
    /// Takes the first job named `tag` that is done.
    pub(crate) fn take_tagged(&mut self, tag: u64) -> Option<Completion<B>> {
        let place = self.done.iter().position(|index| {
            let job = self.slots.get(*index as usize).and_then(Option::as_ref);
            job.is_some_and(|job| job.request.tag == tag)
        })?;
        let index = self.done.remove(place)?;
        self.done.push_front(index);
        self.take()
    }
}
