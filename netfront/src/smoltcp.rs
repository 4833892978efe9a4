//! The interface as a device of smoltcp's: a TCP/IP stack for kernels that have none.
//!
//! smoltcp sums and checks for itself and takes one packet after the other, so nothing is asked of the
//! backend; packets are copied out before the stack sees them. One thread, which polls.

use alloc::vec::Vec;

use ::smoltcp::phy::{self, DeviceCapabilities, Medium};
use ::smoltcp::time::Instant;
use hypervisor::Error;

use crate::Offload;
use crate::device::{Config, Platform};
use crate::interface::Interface;
use crate::negotiate::Offloads;
use crate::queue::Queue;
use crate::transmit::Place;

/// Bytes of an Ethernet header, which smoltcp counts in.
const ETHERNET: usize = 14;
/// The MTU while there is no backend that says another.
const MTU: u32 = 1500;

/// A network interface for smoltcp.
pub struct Phy<H: Platform> {
    interface: Interface<H>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    error: Option<Error>,
}

impl<H: Platform> Phy<H> {
    /// What an interface is to be made with: one queue, and no packets that others finish. They may
    /// have more than a page, for the MTU may be more than that.
    #[must_use]
    pub fn config() -> Config {
        Config { receive: Offloads { sg: true, ..Offloads::NONE }, ..Config::default() }
    }

    /// Packets of the first queue of `interface`, for which [`config`](Self::config) is best.
    #[must_use]
    pub fn new(interface: Interface<H>) -> Self {
        Self { interface, incoming: Vec::new(), outgoing: Vec::new(), error: None }
    }

    /// The interface.
    pub fn interface(&mut self) -> &mut Interface<H> {
        &mut self.interface
    }

    /// Why the interface cannot be followed any more, if it cannot.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    fn frame(&self) -> usize {
        let mtu = self.interface.info().map_or(MTU, |info| info.mtu);
        usize::try_from(mtu).unwrap_or(usize::MAX).saturating_add(ETHERNET)
    }

    fn poll(&mut self) {
        if self.error.is_none()
            && let Err(error) = self.interface.poll()
        {
            self.error = Some(error);
        }
    }

    /// A place for a packet, which is what a token to send one stands for.
    fn place(&mut self) -> Option<Place> {
        let frame = self.frame();
        let queue = self.interface.queues().first_mut()?;
        let most = queue.longest();
        queue.place(frame.min(most)).ok()
    }
}

impl<H: Platform> phy::Device for Phy<H> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a, H>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_, H>)> {
        self.poll();
        // Without room for an answer the packet waits.
        let place = self.place()?;
        let queue = self.interface.queues().first_mut()?;
        if queue.receive_into(&mut self.incoming).is_none() {
            queue.put_back(place);
            return None;
        }
        let outgoing = Outgoing { queue, place: Some(place), buffer: &mut self.outgoing };
        Some((Incoming { packet: &self.incoming }, outgoing))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_, H>> {
        self.poll();
        let place = self.place()?;
        let queue = self.interface.queues().first_mut()?;
        Some(Outgoing { queue, place: Some(place), buffer: &mut self.outgoing })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame();
        capabilities
    }
}

/// A packet that came.
#[derive(Debug)]
pub struct Incoming<'a> {
    packet: &'a [u8],
}

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.packet)
    }
}

/// Room for a packet.
pub struct Outgoing<'a, H: Platform> {
    queue: &'a mut Queue<H>,
    place: Option<Place>,
    buffer: &'a mut Vec<u8>,
}

impl<H: Platform> phy::TxToken for Outgoing<'_, H> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, write: F) -> R {
        self.buffer.clear();
        self.buffer.resize(len, 0);
        let done = write(self.buffer);
        if let Some(place) = self.place.take() {
            self.queue.write(&place, &[self.buffer]);
            // What is refused here is longer than smoltcp was told, and lost as on any network.
            let _ = self.queue.send_place(place, len, Offload::default());
            self.queue.flush();
        }
        done
    }
}

impl<H: Platform> Drop for Outgoing<'_, H> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.queue.put_back(place);
        }
    }
}
