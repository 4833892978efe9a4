//! A whole machine in one process, for tests.
//!
//! [`Machine`] runs a real broker and a real store on threads, in a folder that goes with it, and
//! joins as many domains as a test asks for. What a test sees is what separate processes would see;
//! only what is done to processes (pausing, cgroups) is left out.

use std::os::fd::{AsFd as _, OwnedFd};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tempfile::TempDir;

use crate::domain::DomainSpec;
use crate::embedded::broker::{Broker, Options};
use crate::embedded::{Domain, Place};
use crate::xenstore::Client;
use crate::{Error, HostError};

/// Memory of the machine, in KiB: promised, not used.
const MEMORY_KIB: u64 = 16 << 20;

/// A machine that runs the embedded hypervisor. Dropping it ends all its domains.
#[derive(Debug)]
pub struct Machine {
    place: Place,
    stop: EventFd,
    broker: Option<JoinHandle<Result<(), HostError>>>,
    // Last, so that the folder goes when nothing is in it any more.
    _folder: TempDir,
}

impl Machine {
    /// A machine with 16 GiB to promise and no domains.
    ///
    /// # Panics
    ///
    /// It cannot be made: then no test can go on.
    #[must_use]
    pub fn new() -> Self {
        match Self::start() {
            Ok(machine) => machine,
            Err(error) => fail("make a machine", &error),
        }
    }

    fn start() -> Result<Self, Error> {
        let folder = TempDir::with_prefix("domkit-")
            .map_err(|error| HostError::from_io("make a folder", &error))?;
        let place = Place::at(folder.path().join("run"));
        let mut options = Options::new(place.clone());
        options.memory_kib = Some(MEMORY_KIB);
        options.groups = false;
        let broker = Broker::start(&options)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| HostError::new("make an eventfd", errno as i32))?;
        let stopped: OwnedFd = stop
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| HostError::from_io("copy an eventfd", &error))?;
        let broker = std::thread::Builder::new()
            .name("broker".to_owned())
            .spawn(move || broker.run(stopped))
            .map_err(|error| HostError::from_io("start a thread", &error))?;
        Ok(Self { place, stop, broker: Some(broker), _folder: folder })
    }

    /// Where its hypervisor is found.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A new domain of that name with 64 MiB and one vCPU.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    #[must_use]
    pub fn domain(&self, name: &str) -> Domain {
        self.domain_with(&DomainSpec::new(name))
    }

    /// A new domain.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    #[must_use]
    pub fn domain_with(&self, spec: &DomainSpec) -> Domain {
        match Domain::join(&self.place, spec) {
            Ok(domain) => domain,
            Err(error) => fail("join a domain", &error),
        }
    }

    /// A connection to the store as the control domain: a toolstack's.
    ///
    /// # Panics
    ///
    /// The store cannot be reached.
    #[must_use]
    pub fn control_store(&self) -> Client {
        match Client::connect(self.place.store_socket()) {
            Ok(client) => client,
            Err(error) => fail("connect to the store", &error.into()),
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It fails only where the counter is full, and then the broker is stopping.
        let _ = self.stop.write(1);
        if let Some(broker) = self.broker.take() {
            let ended = broker.join();
            if !std::thread::panicking() {
                assert!(matches!(ended, Ok(Ok(()))), "the broker ended with {ended:?}");
            }
        }
    }
}

#[expect(clippy::panic, reason = "a test that has no machine has failed")]
fn fail(doing: &str, error: &Error) -> ! {
    panic!("{doing}: {error}")
}
