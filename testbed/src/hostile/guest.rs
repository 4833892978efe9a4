//! A guest without manners: a domain and its device's directory in the store.
//!
//! It can do everything that a frontend may do and all that it must not: nothing here checks what it
//! is told to write. Source: the state diagram of `io/blkif.h`, RELEASE-4.17.

use std::cell::Cell;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hypervisor::domain::DomainSpec;
use hypervisor::embedded::{Domain, Pages, Place};
use hypervisor::event::{Channel as _, Events};
use hypervisor::memory::{Access, Granting};
use hypervisor::store::{Store as _, StoreError, Transaction};
use hypervisor::xenbus::State;
use hypervisor::{DomId, Error, GrantRef};

use super::Disk;

/// How long a backend may take over anything. Nothing is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pages of data that a connected disk comes with.
pub const DATA: usize = 16;
/// What an honest frontend writes into `protocol`.
pub const PROTOCOL: &str = "x86_64-abi";

/// Where the hypervisor is, and as whom to join it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Where the hypervisor is.
    pub place: Place,
    /// The name that the backend waits for.
    pub name: String,
    /// What kind of device it is given: `vbd` or `vif`.
    pub kind: &'static str,
}

/// A domain that was given a device.
pub struct Guest {
    /// The domain.
    pub domain: Domain,
    /// Who serves it.
    pub backend: DomId,
    front: String,
    back: String,
    /// We have said nothing yet.
    fresh: Cell<bool>,
}

impl Stage {
    /// Joins, and waits for the device.
    ///
    /// # Errors
    ///
    /// There is no hypervisor or no device.
    pub fn join(&self) -> Result<Guest> {
        let spec = DomainSpec::new(&self.name);
        let mut domain = None;
        wait_for("the name of the guest that was before", || {
            match Domain::join(&self.place, &spec) {
                Ok(joined) => domain = Some(joined),
                // The one before has not been buried yet.
                Err(Error::Config(_)) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(domain.is_some())
        })?;
        let domain = domain.context("no domain")?;
        let mut found = None;
        wait_for("a device", || {
            found = device_of(&domain, self.kind)?;
            Ok(found.is_some())
        })?;
        let (front, back, backend) = found.context("no device")?;
        Ok(Guest { domain, backend, front, back, fresh: Cell::new(true) })
    }
}

/// The directories of a domain's first device of a kind, and its backend's number.
fn device_of(domain: &Domain, kind: &str) -> Result<Option<(String, String, DomId)>> {
    let numbers = match domain.list(Transaction::NONE, &format!("device/{kind}")) {
        Ok(numbers) => numbers,
        Err(StoreError::Missing(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(number) = numbers.first() else { return Ok(None) };
    let front = format!("device/{kind}/{number}");
    let text = |key: &str| match domain.read(Transaction::NONE, &format!("{front}/{key}")) {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(back), Some(id)) = (text("backend")?, text("backend-id")?) else { return Ok(None) };
    let id = id.parse().ok().and_then(DomId::new).with_context(|| format!("backend-id {id}"))?;
    Ok(Some((front, back, id)))
}

/// Waits until `holds`.
///
/// # Errors
///
/// It never does, or its own.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < PATIENCE, "the backend never came to {what}");
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Guest {
    /// Writes a key of ours.
    ///
    /// # Errors
    ///
    /// The store refuses.
    pub fn write(&self, key: &str, value: impl AsRef<[u8]>) -> Result<()> {
        self.fresh.set(false);
        let path = format!("{}/{key}", self.front);
        Ok(self.domain.write(Transaction::NONE, &path, value.as_ref())?)
    }

    /// Reads a key of ours.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn read(&self, key: &str) -> Result<String> {
        let value = self.domain.read(Transaction::NONE, &self.path(key))?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// Removes a key of ours.
    ///
    /// # Errors
    ///
    /// The store refuses.
    pub fn remove(&self, key: &str) -> Result<()> {
        self.fresh.set(false);
        Ok(self.domain.remove(Transaction::NONE, &format!("{}/{key}", self.front))?)
    }

    /// The path of a key of ours.
    #[must_use]
    pub fn path(&self, key: &str) -> String {
        format!("{}/{key}", self.front)
    }

    /// Says that we are in `state`.
    ///
    /// # Errors
    ///
    /// The store refuses.
    pub fn say(&self, state: State) -> Result<()> {
        self.write("state", state.number().to_string())
    }

    /// The backend's state.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn backend_state(&self) -> Result<State> {
        match self.domain.read(Transaction::NONE, &format!("{}/state", self.back)) {
            Ok(value) => Ok(State::parse(&value)),
            Err(StoreError::Missing(_)) => Ok(State::Unknown),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the backend is in one of `states`.
    ///
    /// # Errors
    ///
    /// It never is.
    pub fn until(&self, states: &[State]) -> Result<()> {
        let last = Cell::new(State::Unknown);
        let reached = wait_for(&format!("one of {states:?}"), || {
            last.set(self.backend_state()?);
            Ok(states.contains(&last.get()))
        });
        reached.with_context(|| format!("it stays {}", last.get()))
    }

    /// Begins anew, whatever was before: closed, and then waiting for the backend's offer.
    ///
    /// # Errors
    ///
    /// The backend does not follow.
    pub fn begin(&self) -> Result<()> {
        // A backend may still be acting on what it saw before: an offer that it makes then is none
        // to go by, and Closed is where it stays until we say otherwise.
        if !self.fresh.get() {
            self.say(State::Closed)?;
            self.until(&[State::Closed])?;
            self.say(State::Initialising)?;
        }
        self.until(&[State::InitWait])
    }

    /// Grants `pages` new pages to the backend.
    ///
    /// # Errors
    ///
    /// There are none left.
    pub fn grant(&self, pages: usize, access: Access) -> Result<(Pages, Vec<GrantRef>)> {
        self.grant_to(self.backend, pages, access)
    }

    /// Grants `pages` new pages to `peer`.
    ///
    /// # Errors
    ///
    /// There are none left.
    pub fn grant_to(
        &self,
        peer: DomId,
        pages: usize,
        access: Access,
    ) -> Result<(Pages, Vec<GrantRef>)> {
        let memory = Granting::allocate(&self.domain, pages, peer)?;
        let mut grefs = vec![GrantRef(0); pages];
        self.domain.grant(&memory, 0, access, &mut grefs)?;
        Ok((memory, grefs))
    }

    /// Writes the keys of an honest frontend with a ring of `1 << order` pages, all but the state.
    ///
    /// # Errors
    ///
    /// The store or the hypervisor refuses.
    pub fn publish(&self, order: u32) -> Result<Disk<'_>> {
        let pages = 1_usize.checked_shl(order).context("a ring of that order")?;
        let (ring, ring_grefs) = self.grant(pages, Access::ReadWrite)?;
        let (data, grefs) = self.grant(DATA, Access::ReadWrite)?;
        let channel = Events::allocate(&self.domain, self.backend)?;
        self.write("protocol", PROTOCOL)?;
        self.write("event-channel", channel.port().to_string())?;
        self.write("feature-persistent", "1")?;
        self.write("ring-page-order", order.to_string())?;
        for (page, gref) in ring_grefs.iter().enumerate() {
            self.write(&format!("ring-ref{page}"), gref.to_string())?;
        }
        if let [gref] = ring_grefs.as_slice() {
            self.write("ring-ref", gref.to_string())?;
        }
        Disk::new(self, (ring, ring_grefs), channel, (data, grefs))
    }

    /// Connects as an honest frontend does.
    ///
    /// # Errors
    ///
    /// The backend does not follow.
    pub fn connect(&self, order: u32) -> Result<Disk<'_>> {
        self.begin()?;
        let disk = self.publish(order)?;
        self.say(State::Initialised)?;
        self.until(&[State::Connected])?;
        self.say(State::Connected)?;
        Ok(disk)
    }
}
