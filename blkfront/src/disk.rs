//! A device and its queues, driven by one thread that polls.
//!
//! For a kernel's loop or a test: nothing here sleeps, and nothing runs behind the caller's back.
//! [`poll`](Disk::poll) does whatever can be done; between polls, requests are put into queues and
//! completions taken from them. [`run`](Disk::run) is the blocking convenience over that.

use alloc::string::String;
use alloc::vec::Vec;

use hypervisor::Error;

use crate::buffer::Buffer;
use crate::device::{Block, Config, Device, Ending, Phase, Platform, Step};
use crate::negotiate::DiskInfo;
use crate::queue::Queue;
use crate::request::{Completion, IoError, Rejected, Request};

/// A disk.
pub struct Disk<H: Platform, B> {
    platform: H,
    device: Device<H>,
    queues: Vec<Queue<H, B>>,
    /// How many of the queues the backend serves.
    served: usize,
}

impl<H, B> Disk<H, B>
where
    H: Platform,
    B: Buffer<Pages = H::Memory>,
{
    /// The disk in `directory` of the store, not connected yet.
    pub fn new(platform: H, directory: impl Into<String>, config: Config) -> Self {
        let queues = (0..config.queues.max(1)).map(|_| Queue::new(config.depth)).collect();
        Self { platform, device: Device::new(directory, Block::new(config)), queues, served: 0 }
    }

    /// Does whatever can be done now. Says whether there are completions to take.
    ///
    /// # Errors
    ///
    /// The store is gone, or memory for rings cannot be had.
    pub fn poll(&mut self) -> Result<bool, Error> {
        while self.platform.changed()?.is_some() {}
        loop {
            let step = self.device.poll(&self.platform)?;
            if matches!(step, Step::Idle) {
                break;
            }
            self.follow(step);
        }
        let mut ready = false;
        let mut fault = None;
        for queue in &mut self.queues {
            match queue.service() {
                Ok(done) => ready |= done,
                Err(found) => {
                    ready = true;
                    fault = Some(found);
                }
            }
        }
        if let Some(fault) = fault {
            let step = self.device.fail(&self.platform, fault)?;
            self.follow(step);
        }
        Ok(ready)
    }

    fn follow(&mut self, step: Step<H>) {
        match step {
            Step::Idle => {}
            Step::Attach(links, info) => {
                self.served = links.len();
                for (queue, link) in self.queues.iter_mut().zip(links) {
                    queue.attach(link, info);
                }
            }
            Step::Update(info) => self.queues.iter_mut().for_each(|queue| queue.update(info)),
            Step::Detach => {
                let links: Vec<_> = self.queues.iter_mut().filter_map(Queue::detach).collect();
                self.device.retire(&self.platform, links);
            }
            Step::End(ending) => {
                let error = IoError::of(&ending);
                let links: Vec<_> =
                    self.queues.iter_mut().filter_map(|queue| queue.end(error)).collect();
                self.device.retire(&self.platform, links);
            }
        }
    }

    /// The queues that the backend serves; none before the first connection.
    pub fn queues(&mut self) -> &mut [Queue<H, B>] {
        self.queues.get_mut(..self.served).unwrap_or_default()
    }

    /// What the disk is, once it was connected.
    #[must_use]
    pub fn info(&self) -> Option<&DiskInfo> {
        self.device.info()
    }

    /// Where the device is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.device.phase()
    }

    /// Why it is over, if it is.
    #[must_use]
    pub fn ending(&self) -> Option<&Ending> {
        self.device.ending()
    }

    /// The device itself.
    pub fn device(&self) -> &Device<H> {
        &self.device
    }

    /// Asks again for pages that a backend would not let go of; says how many are still missing.
    pub fn reclaim(&mut self) -> usize {
        self.device.reclaim(&self.platform)
    }

    /// Does `request` on the first queue and waits for it, calling `idle` whenever there is nothing
    /// to do. Other requests go on meanwhile; their completions stay to be taken.
    ///
    /// # Errors
    ///
    /// The request, where it was not taken; or the store is gone, and the request's memory with it.
    pub fn run(
        &mut self,
        request: Request<B>,
        mut idle: impl FnMut(),
    ) -> Result<Result<Completion<B>, Rejected<B>>, Error> {
        let tag = request.tag;
        let Some(first) = self.queues.first_mut() else {
            let reason = crate::request::Reason::NotConnected;
            return Ok(Err(Rejected { request, reason }));
        };
        if let Err(rejected) = first.submit(request) {
            return Ok(Err(rejected));
        }
        loop {
            self.poll()?;
            if let Some(done) = self.queues.first_mut().and_then(|queue| queue.complete_tag(tag)) {
                return Ok(Ok(done));
            }
            idle();
        }
    }

    /// Begins to close the disk: every request ends, and the backend is asked to let go. Poll until
    /// [`phase`](Self::phase) is [`Phase::Closed`].
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn close(&mut self) -> Result<(), Error> {
        let step = self.device.close(&self.platform)?;
        self.follow(step);
        Ok(())
    }

    /// Stops waiting for a backend that will not let go. Its pages stay in quarantine.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn abandon(&mut self) -> Result<(), Error> {
        let links: Vec<_> =
            self.queues.iter_mut().filter_map(|queue| queue.end(IoError::Detached)).collect();
        self.device.retire(&self.platform, links);
        self.device.abandon(&self.platform)
    }
}
