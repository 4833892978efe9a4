//! The thread that follows the store.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor::{Error, HostError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::device::{Config, Device, Ending, Phase, Step};
use crate::host::Host;
use crate::host::disk::Shared;

/// How often pages in quarantine are asked for.
const RECLAIM: Duration = Duration::from_secs(1);

/// Starts it for the device in `directory`. It ends when the device is over and closed.
pub(super) fn start<H: Host>(
    shared: Arc<Shared<H>>,
    directory: String,
    config: Config,
) -> Result<JoinHandle<()>, HostError> {
    std::thread::Builder::new()
        .name("blkfront-store".into())
        .spawn(move || {
            let mut control = Control { device: Device::new(directory, config), shared };
            if let Err(error) = control.run() {
                let ending = Ending::Broken(error.to_string());
                control.follow(Step::End(ending.clone()));
                control.shared.update(|status| {
                    status.phase = Phase::Closed;
                    status.ending = Some(ending);
                });
            }
        })
        .map_err(|error| HostError::from_io("start a thread", &error))
}

struct Control<H: Host> {
    device: Device<H>,
    shared: Arc<Shared<H>>,
}

impl<H: Host> Control<H> {
    fn run(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        loop {
            while shared.platform.changed()?.is_some() {}
            loop {
                match self.device.poll(&shared.platform)? {
                    Step::Idle => break,
                    step => self.follow(step),
                }
            }
            let (fault, close) = {
                let mut orders = shared.orders();
                (orders.fault.take(), orders.close)
            };
            if let Some(fault) = fault {
                let step = self.device.fail(&shared.platform, fault)?;
                self.follow(step);
            }
            if let Some(deadline) = close {
                if self.device.phase() != Phase::Closed {
                    let step = self.device.close(&shared.platform)?;
                    self.follow(step);
                }
                if self.device.phase() != Phase::Closed && Instant::now() >= deadline {
                    self.device.abandon(&shared.platform)?;
                }
            }
            let held = self.device.reclaim(&shared.platform);
            self.tell(held);
            if close.is_some() && self.device.phase() == Phase::Closed {
                return Ok(());
            }
            self.sleep(close.is_some() || held > 0)?;
        }
    }

    fn tell(&self, quarantined: usize) {
        self.shared.update(|status| {
            status.phase = self.device.phase();
            status.backend = self.device.seat().map(|seat| seat.peer).or(status.backend);
            status.info = self.device.info().copied();
            status.offer = self.device.offer().copied();
            status.trusted = self.device.trusted();
            status.quarantined = quarantined;
            status.ending = self.device.ending().cloned();
        });
    }

    fn sleep(&self, briefly: bool) -> Result<(), Error> {
        let timeout = if briefly {
            PollTimeout::try_from(RECLAIM).unwrap_or(PollTimeout::MAX)
        } else {
            PollTimeout::NONE
        };
        let mut fds = [
            PollFd::new(self.shared.platform.store_fd(), PollFlags::POLLIN),
            PollFd::new(self.shared.bell.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(HostError::new("wait for the store", errno as i32).into()),
        }
        self.shared.bell.hush();
        Ok(())
    }

    /// Does what the device says, and wakes whoever waits at a queue.
    fn follow(&mut self, step: Step<H>) {
        let shared = Arc::clone(&self.shared);
        match step {
            Step::Idle => return,
            Step::Attach(links, info) => {
                let slots = links.first().map_or(0, crate::link::Link::slots);
                let queues = links.len();
                for (lane, link) in shared.lanes.iter().zip(links) {
                    lane.lock().attach(link, info);
                }
                shared.update(|status| {
                    status.slots = slots;
                    status.queues = queues;
                    status.connections = status.connections.saturating_add(1);
                });
                tracing::info!(size = info.size, queues, slots, "disk connected");
            }
            Step::Update(info) => {
                shared.lanes.iter().for_each(|lane| lane.lock().update(info));
                tracing::info!(size = info.size, "disk changed");
            }
            Step::Detach => {
                let links: Vec<_> =
                    shared.lanes.iter().filter_map(|lane| lane.lock().detach()).collect();
                self.device.retire(&shared.platform, links);
                tracing::warn!("the backend is gone; waiting for one to come back");
            }
            Step::End(ending) => {
                let error = ending.error();
                let links: Vec<_> =
                    shared.lanes.iter().filter_map(|lane| lane.lock().end(error)).collect();
                self.device.retire(&shared.platform, links);
                tracing::info!("{ending}");
            }
        }
        shared.lanes.iter().for_each(|lane| lane.bell.ring());
    }
}
