//! The thread that follows the store.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::user::Shared;
use super::{Host, Lanes};
use crate::frontend::device::StepOf;
use crate::frontend::{Device, Ending, Kind, Phase, Step};
use crate::{Error, HostError};

/// How often pages in quarantine are asked for.
const RECLAIM: Duration = Duration::from_secs(1);

/// Starts it for the device in `directory`. It ends when the device is over and closed.
pub(super) fn start<H, K, L>(
    shared: Arc<Shared<H, K, L>>,
    directory: String,
    kind: K,
) -> Result<JoinHandle<()>, HostError>
where
    H: Host,
    K: Kind<H, Links: Send, Offer: Send, Info: Send> + Send + 'static,
    L: Lanes<H, K>,
{
    std::thread::Builder::new()
        .name(format!("{}-store", K::TOKEN))
        .spawn(move || {
            let mut control = Control { device: Device::new(directory, kind), shared };
            if let Err(error) = control.run() {
                let ending = Ending::Broken(error.to_string());
                control.follow(Step::End(ending));
                control.shared.change(|status| status.phase = Phase::Closed);
            }
        })
        .map_err(|error| HostError::from_io("start a thread", &error))
}

struct Control<H: Host, K: Kind<H>, L> {
    device: Device<H, K>,
    shared: Arc<Shared<H, K, L>>,
}

impl<H: Host, K: Kind<H>, L: Lanes<H, K>> Control<H, K, L> {
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
        self.shared.change(|status| {
            status.phase = self.device.phase();
            status.backend = self.device.seat().map(|seat| seat.peer).or(status.backend);
            status.info = self.device.info().cloned();
            status.offer = self.device.offer().cloned();
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

    /// Does what the device says. Who is woken by it looks at the status, which therefore says it first.
    fn follow(&mut self, step: StepOf<H, K>) {
        let shared = Arc::clone(&self.shared);
        match step {
            Step::Idle => {}
            Step::Attach(links, info) => {
                shared.lanes.attach(links, info);
                shared.change(|status| status.connections = status.connections.saturating_add(1));
                tracing::info!("connected");
            }
            Step::Update(info) => {
                shared.change(|status| status.info = Some(info.clone()));
                shared.lanes.update(info);
                tracing::info!("the device changed");
            }
            Step::Detach => {
                let links = shared.lanes.detach();
                self.device.retire(&shared.platform, links);
                tracing::warn!("the backend is gone; waiting for one to come back");
            }
            Step::End(ending) => {
                shared.change(|status| status.ending = Some(ending.clone()));
                let links = shared.lanes.end(&ending);
                self.device.retire(&shared.platform, links);
                tracing::info!("{ending}");
            }
        }
    }
}
