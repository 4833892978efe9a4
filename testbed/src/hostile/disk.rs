//! A connected disk as a guest without manners has it: its end of the ring as raw memory.
//!
//! Nothing here checks what is written. Source: io/ring.h and io/blkif.h, RELEASE-4.17.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context as _, Result, bail, ensure};
use hypervisor::embedded::{EventChannel, Pages};
use hypervisor::event::Channel as _;
use hypervisor::memory::{Granting as _, Memory as _, Revoked};
use hypervisor::xenbus::State;
use hypervisor::{GrantRef, PAGE_SIZE};
use ring::layout::{HEADER, Word};
use ring::protocol::{Protocol as _, SlotBytes as _};
use ring::wire::blkif::{Abi, Blkif, Layout, Request, Response, Segment, X86_64};

use super::Guest;
use super::guest::wait_for;

/// A connected disk, as its ring's raw memory.
pub struct Disk<'a> {
    guest: &'a Guest,
    /// The ring's pages.
    pub ring: Arc<Pages>,
    ring_grefs: Vec<GrantRef>,
    /// Our end of its channel.
    pub channel: EventChannel,
    /// Granted pages.
    pub data: Arc<Pages>,
    /// Their references.
    pub grefs: Vec<GrantRef>,
    slots: u32,
    produced: u32,
    answered: u32,
}

impl<'a> Disk<'a> {
    /// What `guest` has published: its ring, its end of the channel, and its data pages.
    pub(super) fn new(
        guest: &'a Guest,
        (ring, ring_grefs): (Pages, Vec<GrantRef>),
        channel: EventChannel,
        (data, grefs): (Pages, Vec<GrantRef>),
    ) -> Result<Self> {
        for word in [Word::RequestEvent, Word::ResponseEvent] {
            ring.write_at(word.offset(), &1_u32.to_le_bytes())?;
        }
        let slots = Abi::X86_64.slots(ring_grefs.len());
        let (ring, data, produced, answered) = (Arc::new(ring), Arc::new(data), 0, 0);
        Ok(Self { guest, ring, ring_grefs, channel, data, grefs, slots, produced, answered })
    }

    /// The references of the ring's pages.
    #[must_use]
    pub fn ring_grefs(&self) -> &[GrantRef] {
        &self.ring_grefs
    }

    /// Slots on the ring.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Data page `page` as a segment.
    ///
    /// # Errors
    ///
    /// There is no such page.
    pub fn segment(&self, page: usize, first: u8, last: u8) -> Result<Segment> {
        let gref = *self.grefs.get(page).context("no such page")?;
        Ok(Segment { gref, first, last })
    }

    /// Writes `bytes` at `at` in the slot whose turn it is after `ahead` others.
    ///
    /// # Errors
    ///
    /// They do not fit.
    pub fn scribble(&self, ahead: u32, at: usize, bytes: &[u8]) -> Result<()> {
        let mask = self.slots.wrapping_sub(1);
        let number = self.produced.wrapping_add(ahead) & mask;
        let slot = (number as usize).saturating_mul(<X86_64 as Layout>::Slot::LEN);
        let offset = HEADER.saturating_add(slot).saturating_add(at);
        Ok(self.ring.write_at(offset, bytes)?)
    }

    /// Puts a request in the next slot and shows it, without an event.
    ///
    /// # Errors
    ///
    /// The ring has no such slot.
    pub fn put(&mut self, request: &Request) -> Result<()> {
        let mut slot = <X86_64 as Layout>::Slot::ZERO;
        Blkif::<X86_64>::encode_request(request, &mut slot);
        self.put_bytes(&slot)
    }

    /// The same with a slot's bytes as they are.
    ///
    /// # Errors
    ///
    /// The ring has no such slot.
    pub fn put_bytes(&mut self, slot: &[u8]) -> Result<()> {
        self.scribble(0, 0, slot)?;
        self.produced = self.produced.wrapping_add(1);
        self.show(self.produced)
    }

    /// Writes the request producer.
    ///
    /// # Errors
    ///
    /// There is no ring.
    pub fn show(&self, producer: u32) -> Result<()> {
        // What the slot holds must be there before the index says so, as an honest frontend has it.
        fence(Ordering::SeqCst);
        Ok(self.ring.write_at(Word::RequestProducer.offset(), &producer.to_le_bytes())?)
    }

    /// Requests put so far.
    #[must_use]
    pub fn produced(&self) -> u32 {
        self.produced
    }

    /// Sends an event.
    ///
    /// # Errors
    ///
    /// The channel is no more.
    pub fn ring_bell(&self) -> Result<()> {
        Ok(self.channel.notify()?)
    }

    /// Waits for the answers to everything that was put.
    ///
    /// # Errors
    ///
    /// They never come, or the backend gives the connection up.
    pub fn answers(&mut self) -> Result<Vec<Response>> {
        self.ring_bell()?;
        let mut answers = Vec::new();
        wait_for("answer", || {
            let mut word = [0; 4];
            self.ring.read_at(Word::ResponseProducer.offset(), &mut word)?;
            fence(Ordering::SeqCst);
            let shown = u32::from_le_bytes(word);
            ensure!(
                shown.wrapping_sub(self.answered) <= self.produced.wrapping_sub(self.answered),
                "response producer {shown} with {} requests made",
                self.produced
            );
            while self.answered != shown {
                let number = self.answered & self.slots.wrapping_sub(1);
                let slot = (number as usize).saturating_mul(<X86_64 as Layout>::Slot::LEN);
                let mut answer = <X86_64 as Layout>::Answer::ZERO;
                self.ring.read_at(HEADER.saturating_add(slot), &mut answer)?;
                answers.push(Blkif::<X86_64>::decode_response(&answer));
                self.answered = self.answered.wrapping_add(1);
            }
            if self.answered != self.produced {
                let state = self.guest.backend_state()?;
                ensure!(state == State::Connected, "{state} instead of an answer");
            }
            Ok(self.answered == self.produced)
        })?;
        Ok(answers)
    }

    /// Puts one request and waits for its answer.
    ///
    /// # Errors
    ///
    /// As for [`answers`](Self::answers).
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        self.put(request)?;
        let answers = self.answers()?;
        answers.last().copied().context("no answer")
    }

    /// Closes as an honest frontend does, and takes the grants back.
    ///
    /// # Errors
    ///
    /// The backend does not follow, or still has a page afterwards.
    pub fn close(self) -> Result<()> {
        self.guest.say(State::Closing)?;
        self.guest.until(&[State::Closing, State::Closed])?;
        self.guest.say(State::Closed)?;
        self.guest.until(&[State::Closed])?;
        for gref in self.ring_grefs.iter().chain(&self.grefs) {
            if self.guest.domain.revoke(*gref) == Revoked::Busy {
                bail!("grant {gref} is in use by a backend that is closed");
            }
        }
        Ok(())
    }

    /// The bytes of a data page.
    ///
    /// # Errors
    ///
    /// There is no such page.
    pub fn page(&self, page: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.data.read_at(page.saturating_mul(PAGE_SIZE), &mut bytes)?;
        Ok(bytes)
    }
}
