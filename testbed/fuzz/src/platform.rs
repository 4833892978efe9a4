//! A hypervisor of one guest and one backend.
//!
//! Reference 8 + n is the guest's page n. The last page is never granted, and the last but one for
//! reading alone; both are filled with a pattern that nobody may change.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use hypervisor::event::{Channel, Events};
use hypervisor::memory::{Access, CopyOp, Direction, GrantStatus, MapFailed, Memory, Using};
use hypervisor::{DomId, EventPort, GrantRef, HostError, PAGE_SIZE};
use nix::sys::eventfd::EventFd;

use crate::memory::{Granted, Pages};

/// Pages that the guest has.
pub const PAGES: usize = 8;
/// The page that is granted for reading alone.
pub const READ_ONLY: usize = PAGES - 2;
/// The page that is never granted.
pub const NEVER: usize = PAGES - 1;
/// The first reference.
pub const FIRST: u32 = 8;
/// The ports that the guest has for the backend to bind.
pub const PORTS: [u32; 3] = [1, 2, 3];
/// What the two special pages hold.
const PATTERN: u8 = 0xA5;
/// `EINVAL`.
const EINVAL: i32 = 22;

/// The guest, to those who use its memory and events.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its pages.
    pub pages: Pages,
    granted: Arc<[AtomicBool; PAGES]>,
    /// Held by every mapping; itself shared by those who can map.
    live: Arc<Arc<()>>,
    ports: Arc<Mutex<Vec<u32>>>,
}

impl Default for Guest {
    fn default() -> Self {
        let pages = Pages::new(PAGES);
        for page in [READ_ONLY, NEVER] {
            pages.fill(page * PAGE_SIZE, PAGE_SIZE, PATTERN).unwrap();
        }
        let granted = Arc::new(std::array::from_fn(|page| AtomicBool::new(page != NEVER)));
        let ports = Arc::new(Mutex::new(PORTS.to_vec()));
        Self { pages, granted, live: Arc::default(), ports }
    }
}

impl Guest {
    /// Grants a page that is not granted, and revokes one that is, where nothing is mapped.
    pub fn toggle(&self, page: usize) {
        if page < READ_ONLY && self.mapped() == 0 {
            self.granted[page].fetch_xor(true, Relaxed);
        }
    }

    /// How many mappings of its pages there are.
    #[must_use]
    pub fn mapped(&self) -> usize {
        Arc::<()>::strong_count(&self.live) - 1
    }

    /// How many of its event channels are bound.
    #[must_use]
    pub fn bound(&self) -> usize {
        PORTS.len() - self.ports.lock().unwrap().len()
    }

    /// Whether a page of that reference may ever be reached so.
    #[must_use]
    pub fn may(gref: GrantRef, write: bool) -> bool {
        let page = gref.0.wrapping_sub(FIRST) as usize;
        page < READ_ONLY || (page == READ_ONLY && !write)
    }

    /// The two special pages are as they were.
    ///
    /// # Panics
    ///
    /// They are not.
    pub fn check(&self) {
        let mut page = [0; PAGE_SIZE];
        for number in [READ_ONLY, NEVER] {
            self.pages.read_at(number * PAGE_SIZE, &mut page).unwrap();
            assert!(page == [PATTERN; PAGE_SIZE], "page {number} was written");
        }
    }

    fn look_up(&self, gref: GrantRef, access: Access) -> Result<usize, GrantStatus> {
        let page = gref.0.wrapping_sub(FIRST) as usize;
        let granted = self.granted.get(page).ok_or(GrantStatus::BAD_GNTREF)?;
        if !granted.load(Relaxed) || (page == READ_ONLY && access == Access::ReadWrite) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        Ok(page)
    }
}

impl Using for Guest {
    type Mapping = Granted;

    fn map(&self, peer: DomId, grefs: &[GrantRef], access: Access) -> Result<Granted, MapFailed> {
        let mut first = 0;
        for &gref in grefs.iter().rev() {
            let refused = |status| MapFailed::Refused { domain: peer, gref, status };
            first = self.look_up(gref, access).map_err(refused)?;
        }
        match grefs.len() {
            0 => Err(HostError::new("map no pages", EINVAL).into()),
            1 => Ok(Granted::new(&self.pages, first, 1, &self.live)),
            // Rings of several pages are asked for in handshakes only, where nobody looks at them.
            several => Ok(Granted::new(&Pages::new(several), 0, several, &self.live)),
        }
    }

    fn copy(&self, _peer: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), HostError> {
        for op in ops {
            let access = match op.direction {
                Direction::FromPeer => Access::ReadOnly,
                Direction::ToPeer => Access::ReadWrite,
            };
            assert!(usize::from(op.offset) + op.local.len() <= PAGE_SIZE, "a copy past its page");
            op.status = match self.look_up(op.gref, access) {
                Err(status) => status,
                Ok(page) => {
                    let at = page * PAGE_SIZE + usize::from(op.offset);
                    match op.direction {
                        Direction::FromPeer => self.pages.read_at(at, op.local).unwrap(),
                        Direction::ToPeer => self.pages.write_at(at, op.local).unwrap(),
                    }
                    GrantStatus::OKAY
                }
            };
        }
        Ok(())
    }
}

impl Events for Guest {
    type Channel = Bell;

    fn allocate(&self, _peer: DomId) -> Result<Bell, HostError> {
        Err(HostError::new("allocate an event channel", EINVAL))
    }

    fn bind(&self, _peer: DomId, port: EventPort) -> Result<Bell, HostError> {
        let mut ports = self.ports.lock().unwrap();
        let Some(at) = ports.iter().position(|free| *free == port.0) else {
            return Err(HostError::new("bind an event channel", EINVAL));
        };
        ports.swap_remove(at);
        drop(ports);
        let mut bell = Bell::new(port);
        bell.of = Some(self.clone());
        Ok(bell)
    }
}

/// An end of an event channel that nobody sleeps at.
#[derive(Debug)]
pub struct Bell {
    port: EventPort,
    pending: Arc<AtomicBool>,
    masked: AtomicBool,
    of: Option<Guest>,
}

impl Bell {
    /// The end called `port`.
    #[must_use]
    pub fn new(port: EventPort) -> Self {
        Self { port, pending: Arc::default(), masked: AtomicBool::new(false), of: None }
    }

    /// What makes it pending.
    #[must_use]
    pub fn rope(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.pending)
    }
}

impl Channel for Bell {
    fn port(&self) -> EventPort {
        self.port
    }

    fn notify(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn take(&self) -> bool {
        if self.masked.load(Relaxed) || !self.pending.swap(false, Relaxed) {
            return false;
        }
        self.masked.store(true, Relaxed);
        true
    }

    fn unmask(&self) {
        self.masked.store(false, Relaxed);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        static NOTHING: OnceLock<EventFd> = OnceLock::new();
        NOTHING.get_or_init(|| EventFd::new().unwrap()).as_fd()
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(guest) = &self.of {
            guest.ports.lock().unwrap().push(self.port.0);
        }
    }
}
