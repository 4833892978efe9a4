//! A device of our own: made for one guest after the other, and removed.

use std::sync::Arc;

use crate::backend::guest::{self, Guest, Wanted};
use crate::backend::mailbox::Mailbox;
use crate::backend::settle::Backend;
use crate::backend::toolstack::{self, Order};
use crate::backend::{Meeting, Platform, Service};
use crate::xenbus::device::Removed;
use crate::{DomId, Error};

use super::{Ended, Served, Serving, Subject, TOKEN};

/// Whom to serve, and what to make for it.
#[derive(Clone, Debug)]
pub struct Plan<O> {
    /// The backend's own domain.
    pub me: DomId,
    /// The guest.
    pub wanted: Wanted,
    /// The device.
    pub order: Order,
    /// What a frontend may choose from.
    pub offer: O,
}

impl<'a, H, S, C, V> Serving<'a, H, S, C, V>
where
    H: Platform,
    S: Meeting,
    C: Meeting,
    V: Service<H>,
{
    /// Serves `service` as `plan` says, in `domain`. `store` is the domain's own way to the store,
    /// `control` one with a toolstack's rights.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left, or the store is gone.
    pub fn new(
        domain: &'a H,
        store: &'a S,
        control: &'a C,
        service: &'a V,
        plan: Plan<V::Offer>,
    ) -> Result<Self, Error> {
        for special in ["@introduceDomain", "@releaseDomain"] {
            control.watch(special, TOKEN)?;
        }
        let mailbox = Mailbox::new()?;
        let parts = (domain, store, control, service);
        Ok(Self::with(parts, Subject::Ours(Arc::new(plan)), mailbox))
    }

    /// Sees to it that there is a device, if one can be.
    pub(super) fn meet_guest(&mut self, plan: &Plan<V::Offer>) -> Result<Option<Ended>, Error> {
        if let Some(served) = &self.served
            && !guest::lives(self.control, served.guest.id)?
        {
            self.let_go()?;
            if matches!(plan.wanted, Wanted::Id(_)) && self.leaving.is_none() {
                return Ok(Some(Ended::Gone(plan.wanted.clone())));
            }
        }
        if self.served.is_none() {
            if self.leaving.is_some() {
                return Ok(Some(Ended::Asked));
            }
            if let Some(guest) = plan.wanted.find(self.control)? {
                self.begin(guest, plan)?;
            }
        }
        Ok(None)
    }

    /// Whether our end is down but the frontend's is not yet: it is about to be.
    pub(super) fn wait_for_front(&self) -> Result<bool, Error> {
        let Some(served) = &self.served else { return Ok(false) };
        let removed = served.pair.remove(self.control, false)?;
        Ok(matches!(removed, Removed::Waiting(_)))
    }

    /// The device that a process before this one made for `guest`, where the guest's rings can be gone on with.
    fn go_on(&self, guest: &Guest, plan: &Plan<V::Offer>) -> Result<Option<Served<H, V>>, Error> {
        let Some(pair) = toolstack::stands(self.control, plan.me, guest, V::KIND, &plan.order)?
        else {
            return Ok(None);
        };
        let parts = (self.domain, self.service);
        let (offer, waker) = (plan.offer.clone(), self.mailbox.waker());
        let mut backend = Backend::adopt(parts, self.store, &pair, None, offer, waker)?;
        backend.history = self.board.read().history;
        let guest = guest.clone();
        Ok(backend.goes_on().then_some(Served { guest, pair, backend }))
    }

    /// Makes the device for `guest`, or goes on with one that a process before this one made in the same way.
    fn begin(&mut self, guest: Guest, plan: &Plan<V::Offer>) -> Result<(), Error> {
        self.service.prepare(&guest, plan.order.number)?;
        if let Some(served) = self.go_on(&guest, plan)? {
            self.watch(&served.pair)?;
            let device = &served.pair.back.directory;
            tracing::info!(%guest, device, "going on with the device");
            self.board.lock().guest = Some(guest);
            self.served = Some(served);
            return Ok(());
        }
        let pair = match toolstack::make(self.control, plan.me, &guest, V::KIND, &plan.order) {
            Ok(pair) => pair,
            Err(error) => {
                self.service.release();
                // It came and went: its directories cannot be its own.
                let came_and_went = !guest::lives(self.control, guest.id)?;
                return if came_and_went { Ok(()) } else { Err(error) };
            }
        };
        self.watch(&pair)?;
        let device = (V::KIND.label)(plan.order.number)?;
        tracing::info!(%guest, device, "device made");
        let history = self.board.read().history;
        self.board.lock().guest = Some(guest.clone());
        let backend = Backend::new(&pair, plan.offer.clone(), self.mailbox.waker(), history);
        self.served = Some(Served { guest, pair, backend });
        Ok(())
    }
}
