//! The ring on which a Xen frontend receives, and what it takes.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use hypervisor::PeerFault;
use hypervisor::memory::Using;
use ring::packet::Headers;
use ring::packet::flow::Flow;
use ring::wire::netif::fit::{Fit, Takes};
use ring::{Notify, Recheck};

use super::copy_out::copy_out;
use super::fit::{Page, fit};
use super::post::Post;
use super::respond::respond;
use super::take::{self, Fitted, Waiting};
use super::{Room, Sink};
use crate::buffer::Buffer;
use crate::connect::Features;
use crate::offload::{Inbound, LEAST_SEGMENT, from_port};
use crate::queue::Serving;
use crate::stats::{Loss, Stats};

/// What a Xen frontend takes.
#[derive(Debug)]
pub struct Shape {
    features: Features,
    /// Knows what it has changed since.
    serving: Arc<Serving>,
}

impl Shape {
    /// What a frontend with these features takes.
    #[must_use]
    pub const fn new(features: Features, serving: Arc<Serving>) -> Self {
        Self { features, serving }
    }

    /// What it takes, now.
    #[inline]
    fn takes(&self) -> Takes {
        let mut takes = self.features.takes;
        takes.headroom = self.serving.headroom().unwrap_or(takes.headroom);
        takes
    }
}

impl take::Shape for Shape {
    type Fit = Fit;

    #[inline]
    fn fit(&self, buffer: &mut Buffer) -> Result<Fitted<Fit>, Loss> {
        let (mut offload, summed) =
            match from_port(buffer, &self.features.takes, self.features.sums)? {
                Inbound::Whole(offload, summed) => (offload, summed),
                Inbound::Cut(size) => return Ok(Fitted::Cut(size)),
            };
        let mut takes = self.takes();
        // What the guest would cut, but has no room for, is cut here: headroom takes some of every page.
        if let Some(gso) = offload.gso
            && gso.size >= LEAST_SEGMENT
            && !Fit::has_room(buffer.len(), &takes)
        {
            return Ok(Fitted::Cut(gso.size));
        }
        if let Some(steering) = self.serving.steering() {
            takes.hash = true;
            let headers = Headers::find(buffer.packet()).ok();
            let flow = headers.and_then(|headers| Flow::of(buffer.packet(), &headers));
            offload.hash = flow.and_then(|flow| steering.hash(&flow));
        }
        let fit = Fit::new(buffer.len(), offload, &takes).map_err(|_| Loss::Unfit)?;
        Ok(Fitted::Whole { fit, gso: offload.gso.is_some(), summed })
    }

    #[inline]
    fn is_whole(&self) -> bool {
        let Takes { gso_tcpv4, gso_tcpv6, .. } = self.features.takes;
        gso_tcpv4 && gso_tcpv6
    }
}

/// What a Xen frontend receives.
#[derive(Debug)]
pub struct Receiving<U: Using> {
    post: Post<U::Mapping>,
    features: Features,
    /// Pages that were taken and are not answered, and how many each packet has of them.
    pages: Vec<Page>,
    counts: Vec<usize>,
    domain: Rc<U>,
    /// Knows which of the guest's grants queue `number` keeps mapped.
    serving: Arc<Serving>,
    number: u16,
}

impl<U: Using> Receiving<U> {
    /// What goes into the pages of `post`, from us as `domain`, to a frontend with these features.
    #[must_use]
    pub fn new(
        post: Post<U::Mapping>,
        features: Features,
        domain: Rc<U>,
        serving: Arc<Serving>,
        number: u16,
    ) -> Self {
        let (pages, counts) = (Vec::new(), Vec::with_capacity(super::BATCH));
        Self { post, features, pages, counts, domain, serving, number }
    }
}

impl<U: Using> Sink for Receiving<U> {
    type Shape = Shape;

    fn shape(&self) -> Shape {
        Shape::new(self.features, Arc::clone(&self.serving))
    }

    #[inline]
    fn has(&mut self, fit: &Fit) -> Result<Room, PeerFault> {
        Ok(if self.post.has(fit.slots())? { Room::There } else { Room::Short })
    }

    #[inline]
    fn place(&mut self, packet: &Fit) -> Result<(), PeerFault> {
        let count = fit(packet, &mut self.post, &mut self.pages)?;
        self.counts.push(count);
        Ok(())
    }

    #[inline]
    fn copy_out(&mut self, going: &mut VecDeque<Waiting<Fit>>, stats: &Stats) -> usize {
        let (peer, kept) = (self.post.peer(), self.serving.kept(self.number));
        let counts = self.counts.iter().copied();
        let packets = going.iter_mut().map(|waiting| &mut waiting.buffer).zip(counts);
        copy_out(&*self.domain, peer, kept, packets, &mut self.pages, stats);
        self.pages.len()
    }

    #[inline]
    fn publish(&mut self) -> Notify {
        respond(self.counts.drain(..), &mut self.pages, &mut self.post)
    }

    fn rearm(&mut self, fit: &Fit) -> Result<Recheck, PeerFault> {
        self.post.rearm(fit.slots())
    }
}

impl<U: Using> Drop for Receiving<U> {
    fn drop(&mut self) {
        // With the ring; the guest's next backend finds them there.
        self.pages.drain(..).for_each(|page| page.owed.abandon());
    }
}
