//! A toolstack's device: taken over in whichever state it is, and left in order.

use crate::Error;
use crate::backend::adopt::Adopted;
use crate::backend::mailbox::Mailbox;
use crate::backend::settle::Backend;
use crate::backend::{Kind, Meeting, Platform, Service};

use super::{Message, Served, Serving, Subject, TOKEN};

impl<'a, H, S, C, V> Serving<'a, H, S, C, V>
where
    H: Platform,
    S: Meeting,
    C: Meeting,
    V: Service<H>,
{
    /// Serves `service` at `device`, which a toolstack made, and offers `offer` there. What is put
    /// in `mailbox` is taken from then on.
    pub fn adopt(
        domain: &'a H,
        store: &'a S,
        control: &'a C,
        service: &'a V,
        (device, offer): (Adopted, V::Offer),
        mailbox: Mailbox<Message<V::Change, V::Changed>>,
    ) -> Self {
        Self::with((domain, store, control, service), Subject::Theirs(device, offer), mailbox)
    }

    /// Takes over a toolstack's device.
    pub(super) fn take(&mut self, device: &Adopted, offer: V::Offer) -> Result<(), Error> {
        let pair = device.pair.clone();
        self.watch(&pair)?;
        self.store.watch(&format!("{}/hotplug-status", pair.back.directory), TOKEN)?;
        let (guest, waker) = (device.guest.clone(), self.mailbox.waker());
        let parts = (self.domain, self.service);
        let backend = Backend::adopt(parts, self.store, &pair, Some(device.hotplug), offer, waker)?;
        tracing::info!(%guest, label = device.label, device = %device.spot, "device taken over");
        self.board.lock().guest = Some(guest.clone());
        self.served = Some(Served { guest, pair, backend });
        Ok(())
    }
}

/// Why a toolstack's device is not taken away here, and how it is.
pub(super) fn not_ours(kind: &Kind, device: &Adopted) -> String {
    format!(
        "a toolstack gave this {} to {}; have it take it away: {} {} {}",
        kind.noun, device.guest, kind.detach, device.guest.id, device.label
    )
}
