//! The control ring: telling the backend how to spread packets over our queues, and which of our pages
//! to keep mapped.
//!
//! One question at a time, each answered before the next. Tables and lists go through one page that is granted for
//! as long as the connection lasts and holds nothing else. The backend is not trusted: an answer must be to
//! the question that was asked, and comes once. That it will not have hashes is no fault: packets then
//! come on whichever queue it likes.
//!
//! Source: "Control messages" in io/netif.h (RELEASE-4.17).

use alloc::sync::Arc;
use alloc::vec::Vec;

use hypervisor::event::{Channel, Events};
use hypervisor::frontend::{Quarantine, Retire};
use hypervisor::memory::{Access, Granting, Memory};
use hypervisor::{DomId, Error, GrantRef, PeerFault};
use ring::Front;
use ring::wire::netif::Control as Protocol;
use ring::wire::netif::control::{
    Algorithm, Gref, GrefList, HashTypes, Operation, Request, Status,
};

use crate::link::granted_ring;
use crate::negotiate::ControlKeys;
use crate::staging::{Ask, Staging};

/// The most bytes of a key that any backend takes.
pub const MOST_KEY: usize = 40;
/// The most entries of a mapping that any backend takes.
pub const MOST_MAPPING: usize = 128;

/// How packets are to be spread: by a Toeplitz hash of their flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashSetup {
    /// What of a packet is hashed.
    pub types: HashTypes,
    /// The key, of up to [`MOST_KEY`] bytes.
    pub key: Vec<u8>,
    /// Which queue packets go to, by hash modulo the number of entries; up to [`MOST_MAPPING`].
    pub mapping: Vec<u32>,
}

/// How far a backend was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HashState {
    /// There is nothing to tell, or nobody.
    Unset,
    /// It is being told.
    Setting,
    /// It spreads packets so.
    Set,
    /// It refused: the number of the operation, and what it said.
    Refused(u16, Status),
}

/// One connection's control ring.
pub struct ControlLink<H: Granting + Events> {
    peer: DomId,
    ring: Front<Protocol, H::Memory>,
    ring_grefs: Vec<GrantRef>,
    channel: Arc<H::Channel>,
    /// For keys and mappings.
    page: H::Memory,
    page_grefs: Vec<GrantRef>,
    staging: Staging,
}

impl<H: Granting + Events> ControlLink<H> {
    pub(crate) fn new(
        platform: &H,
        peer: DomId,
        staging: Staging,
        quarantine: &mut Quarantine<H>,
    ) -> Result<Self, Error> {
        let (ring, ring_grefs) = granted_ring(platform, peer)?;
        let mut page_grefs = alloc::vec![GrantRef(0)];
        let page = Granting::allocate(platform, 1, peer).and_then(|page| {
            // Lists are to be granted so, though nothing is ever read from what the backend wrote.
            platform.grant(&page, 0, Access::ReadWrite, &mut page_grefs)?;
            Ok(page)
        });
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                quarantine.retire(platform, ring.into_memory(), ring_grefs);
                return Err(error.into());
            }
        };
        match Events::allocate(platform, peer) {
            Ok(channel) => {
                let channel = Arc::new(channel);
                Ok(Self { peer, ring, ring_grefs, channel, page, page_grefs, staging })
            }
            Err(error) => {
                quarantine.retire(platform, ring.into_memory(), ring_grefs);
                quarantine.retire(platform, page, page_grefs);
                Err(error.into())
            }
        }
    }

    pub(crate) fn keys(&self) -> ControlKeys {
        let ring = self.ring_grefs.first().copied().unwrap_or(GrantRef(0));
        ControlKeys { ring, port: self.channel.port() }
    }

    fn page(&self, bytes: &[u8]) -> GrantRef {
        let copied = self.page.write_at(0, bytes);
        debug_assert_eq!(copied, Ok(()), "tables and lists are no larger than a page");
        self.page_grefs.first().copied().unwrap_or(GrantRef(0))
    }

    /// Asks `operation` under `id`.
    fn ask(&mut self, id: u16, operation: Operation) -> Request {
        let request = Request { id, operation };
        let pushed = self.ring.push(&request);
        debug_assert!(pushed.is_ok(), "one question at a time");
        if self.ring.publish().is_needed() {
            // Where that fails the channel is no more, which the store says as well.
            let _ = self.channel.notify();
        }
        request
    }
}

impl<H: Granting + Events> Retire<H> for ControlLink<H> {
    fn retire(self, platform: &H, quarantine: &mut Quarantine<H>) {
        drop(self.channel);
        quarantine.retire(platform, self.ring.into_memory(), self.ring_grefs);
        quarantine.retire(platform, self.page, self.page_grefs);
    }
}

/// Tells each backend what the interface's owner wants.
pub struct Control<H: Granting + Events> {
    wanted: Option<HashSetup>,
    link: Option<ControlLink<H>>,
    state: HashState,
    /// How many questions of the setup were asked.
    step: usize,
    asked: Option<Request>,
    /// Of the next question.
    id: u16,
}

impl<H: Granting + Events> Control<H> {
    /// Wants packets spread as `wanted` says, if it says anything; parts of it that no backend takes are
    /// cut off.
    #[must_use]
    pub fn new(wanted: Option<HashSetup>) -> Self {
        let wanted = wanted.map(|mut wanted| {
            wanted.key.truncate(MOST_KEY);
            wanted.mapping.truncate(MOST_MAPPING);
            wanted
        });
        Self { wanted, link: None, state: HashState::Unset, step: 0, asked: None, id: 0 }
    }

    /// Begins to tell the backend at the other end of `link`.
    pub fn attach(&mut self, link: Option<ControlLink<H>>) {
        self.link = link;
        self.step = 0;
        self.asked = None;
        self.state = match (&self.link, &self.wanted) {
            (Some(_), Some(_)) => HashState::Setting,
            _ => HashState::Unset,
        };
        self.go_on();
    }

    /// Stops, and gives the link back to be retired.
    pub fn detach(&mut self) -> Option<ControlLink<H>> {
        self.state = HashState::Unset;
        self.asked = None;
        self.link.take()
    }

    /// How far it came.
    #[must_use]
    pub fn state(&self) -> HashState {
        self.state
    }

    /// The event channel by which the backend says that it answered, while it was asked.
    #[must_use]
    pub fn channel(&self) -> Option<&Arc<H::Channel>> {
        self.link.as_ref().filter(|_| self.asked.is_some()).map(|link| &link.channel)
    }

    /// Takes answers, asks on, and listens for the next answer. Costs next to nothing when all is asked.
    ///
    /// # Errors
    ///
    /// The backend broke the protocol; the device is to be told.
    pub fn poll(&mut self) -> Result<(), PeerFault> {
        while self.asked.is_some() {
            let Some(link) = &mut self.link else { return Ok(()) };
            link.channel.take();
            link.channel.unmask();
            let Some(answer) = link.ring.take_response().map_err(|fault| fault.by(link.peer))?
            else {
                if link.ring.rearm().map_err(|fault| fault.by(link.peer))?.is_more() {
                    continue;
                }
                return Ok(());
            };
            let asked = self.asked.take();
            match asked {
                Some(asked) if asked.id == answer.id && asked.operation.number() == answer.kind => {
                }
                _ => {
                    let what = "control response to no request";
                    return Err(PeerFault::new(link.peer, what, answer.id));
                }
            }
            let done = answer.status == Status::SUCCESS;
            match (self.state, done) {
                (HashState::Setting, true) => {}
                (HashState::Setting, false) => {
                    self.state = HashState::Refused(answer.kind, answer.status);
                }
                (_, true) => link.staging.answered(answer.data),
                (_, false) => link.staging.refused(),
            }
            self.go_on();
        }
        Ok(())
    }

    /// How many of our pages the backend keeps mapped.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.staging.kept())
    }

    /// Asks the next question, if there is one.
    fn go_on(&mut self) {
        let Some(link) = &mut self.link else { return };
        let mut operation = None;
        if let (HashState::Setting, Some(wanted)) = (self.state, &self.wanted) {
            operation = link.setup(wanted, self.step);
            self.step = self.step.saturating_add(1);
            if operation.is_none() {
                self.state = HashState::Set;
            }
        }
        let Some(operation) = operation.or_else(|| link.keep()) else { return };
        self.id = self.id.wrapping_add(1);
        self.asked = Some(link.ask(self.id, operation));
    }
}

impl<H: Granting + Events> ControlLink<H> {
    /// What to ask so that packets are spread as `wanted`, after so many questions about that.
    fn setup(&self, wanted: &HashSetup, step: usize) -> Option<Operation> {
        let entries = u32::try_from(wanted.mapping.len()).unwrap_or(0);
        Some(match step {
            // The order matters: without an algorithm nothing else is taken.
            0 => Operation::SetHashAlgorithm(Algorithm::TOEPLITZ),
            1 => Operation::SetHashFlags(wanted.types),
            2 => Operation::SetHashKey {
                gref: self.page(&wanted.key),
                size: u32::try_from(wanted.key.len()).unwrap_or(0),
            },
            3 => Operation::SetHashMappingSize { entries },
            4 if entries > 0 => {
                let table: Vec<u8> =
                    wanted.mapping.iter().flat_map(|queue| queue.to_le_bytes()).collect();
                Operation::SetHashMapping { gref: self.page(&table), entries, offset: 0 }
            }
            _ => return None,
        })
    }

    /// What to ask so that pages stay mapped.
    fn keep(&mut self) -> Option<Operation> {
        Some(match self.staging.next()? {
            Ask::Room(queue) => Operation::GetGrefMappingSize { queue },
            Ask::Keep(queue, list) => {
                let entries = u32::try_from(list.len() / Gref::SIZE).unwrap_or(0);
                Operation::AddGrefMapping(GrefList { queue, gref: self.page(&list), entries })
            }
        })
    }
}
