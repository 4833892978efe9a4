//! The split virtqueue, device's side: what a virtio driver and a device share instead of a Xen ring.
//!
//! The driver puts the heads of descriptor chains into the *available* ring and counts them there; the
//! device puts the heads that it is done with into the *used* ring and counts those. Both counts
//! have 16 bits and never go back.
//!
//! ```text
//!   descriptors      size * { address 64, length 32, flags 16, next 16 }
//!   available        flags 16, index 16, head 16 * size, used event 16
//!   used             flags 16, index 16, { head 32, length 32 } * size, available event 16
//! ```
//!
//! [`Device`] takes heads and gives them back, [`Chain`] walks what a head names, [`Inflight`] notes what
//! was taken where it outlives the process. As with a Xen ring, it is said *whether* to notify and to
//! look again, and neither is done here.
//!
//! Trust: the driver's every word. What it wrote is copied out once and checked as a copy; a rule that it broke is
//! a [`Fault`], and the queue is not to be believed any more. Source: virtio 1.2, 2.7. Integers are
//! little-endian (`VIRTIO_F_VERSION_1`).

mod area;
mod chain;
mod device;
mod fault;
mod inflight;

pub use area::Area;
pub use chain::{Buffer, Chain, MOST_BUFFERS};
pub use device::{Device, Head};
pub use fault::Fault;
pub use inflight::{Inflight, inflight_bytes};

/// The most entries of a queue (virtio 1.2, 2.7).
pub const MOST_ENTRIES: u16 = 32768;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Bytes in front of either ring's entries.
const HEADER: usize = 4;
/// Where a ring's index lies.
const INDEX: usize = 2;

/// Bytes of the descriptors of a queue of `size` entries.
#[must_use]
pub const fn descriptor_bytes(size: u16) -> usize {
    (size as usize).saturating_mul(DESCRIPTOR)
}

/// Bytes of its available ring.
#[must_use]
pub const fn available_bytes(size: u16) -> usize {
    (size as usize).saturating_mul(2).saturating_add(HEADER).saturating_add(2)
}

/// Where in the used ring the event stands by which heads are asked for, in bytes: 2 of them.
#[must_use]
pub const fn event_place(size: u16) -> usize {
    (size as usize).saturating_mul(8).saturating_add(HEADER)
}

/// Bytes of its used ring.
#[must_use]
pub const fn used_bytes(size: u16) -> usize {
    (size as usize).saturating_mul(8).saturating_add(HEADER).saturating_add(2)
}
