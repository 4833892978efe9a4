//! A device and its queues, driven by one thread that polls.
//!
//! For a kernel's loop or a test: nothing here sleeps, and nothing runs behind the caller's back.
//! [`poll`](Interface::poll) does whatever can be done; between polls, packets are sent on queues and
//! received from them.

use alloc::string::String;
use alloc::vec::Vec;

use hypervisor::Error;

use crate::control::{Control, HashState};
use crate::device::{Config, Connection, Device, Ending, Net, Phase, Platform, Step};
use crate::negotiate::NetInfo;
use crate::queue::{Counters, Queue};

/// A network interface.
pub struct Interface<H: Platform> {
    platform: H,
    device: Device<H>,
    queues: Vec<Queue<H>>,
    control: Control<H>,
    /// How many of the queues the backend serves.
    served: usize,
}

impl<H: Platform> Interface<H> {
    /// The interface in `directory` of the store, `device/vif/0` for instance, not connected yet.
    pub fn new(platform: H, directory: impl Into<String>, config: Config) -> Self {
        let queues = (0..config.queues.max(1)).map(|_| Queue::new()).collect();
        let control = Control::new(config.hash.clone());
        let device = Device::new(directory, Net::new(config));
        Self { platform, device, queues, control, served: 0 }
    }

    /// Does whatever can be done now besides sending and receiving: follows the store, frees what was
    /// sent, posts pages to receive into, and tells the backend.
    ///
    /// # Errors
    ///
    /// The store is gone, or memory for rings cannot be had.
    pub fn poll(&mut self) -> Result<(), Error> {
        while self.platform.changed()?.is_some() {}
        loop {
            let step = self.device.poll(&self.platform)?;
            if matches!(step, Step::Idle) {
                break;
            }
            self.follow(step);
        }
        let mut fault = self.control.poll().err();
        for queue in &mut self.queues {
            queue.reap();
            queue.flush();
            fault = fault.or_else(|| queue.fault().cloned());
        }
        if let Some(fault) = fault {
            let step = self.device.fail(&self.platform, fault)?;
            self.follow(step);
        }
        Ok(())
    }

    fn follow(&mut self, step: Step<H>) {
        match step {
            Step::Idle | Step::Update(_) => {}
            Step::Attach(links, _) => {
                self.served = links.queues.len();
                for (queue, link) in self.queues.iter_mut().zip(links.queues) {
                    queue.attach(link, links.multicast_control);
                }
                self.control.attach(links.control);
            }
            Step::Detach | Step::End(_) => {
                let links = self.links();
                self.device.retire(&self.platform, links);
            }
        }
    }

    fn links(&mut self) -> Connection<H> {
        let queues = self.queues.iter_mut().filter_map(Queue::detach).collect();
        Connection::of(queues, self.control.detach())
    }

    /// The queues that the backend serves; none before the first connection.
    pub fn queues(&mut self) -> &mut [Queue<H>] {
        self.queues.get_mut(..self.served).unwrap_or_default()
    }

    /// What the interface is, once it was connected.
    #[must_use]
    pub fn info(&self) -> Option<&NetInfo> {
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

    /// How far the backend was told how to spread packets.
    #[must_use]
    pub fn hash_state(&self) -> HashState {
        self.control.state()
    }

    /// How many of our pages the backend keeps mapped.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.control.kept()
    }

    /// What all queues have done so far, together.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut all = Counters::default();
        self.queues.iter().for_each(|queue| all.add(&queue.counters()));
        all
    }

    /// Asks again for pages that a backend would not let go of; says how many are still missing.
    pub fn reclaim(&mut self) -> usize {
        self.device.reclaim(&self.platform)
    }

    /// Begins to close the interface: the backend is asked to let go. Poll until
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
        let links = self.links();
        self.device.retire(&self.platform, links);
        self.device.abandon(&self.platform)
    }
}
