//! vhost-user: devices for the virtual machines of another process.
//!
//! A virtual machine monitor (QEMU, cloud-hypervisor, crosvm, ...) passes the machine's memory and, for each
//! virtqueue, where it lies and two event descriptors over a socket; from then on the device's process and the
//! machine's drivers speak with each other alone. It is no hypervisor: there is no store, and nothing is granted.
//!
//! ```text
//!   socket -> message -> session ---- Device: features, configuration, queues that start and stop
//!                          |  \
//!                        table  vring       memory, rings and descriptors that the session keeps
//! ```
//!
//! [`Session`] turns messages into calls of a [`Device`], which block and network devices are. A queue is given
//! its [`Parts`] when it starts and is stopped before anything about them changes. [`Serving`] is the loop around
//! that: monitors come and go by a [`Door`], and others tell the device what to do.
//!
//! Trust: the monitor has all that the machine has, and may as well be hostile: what it sends is bounded and
//! checked, and what is wrong ends its connection, or the queue that it is wrong about. A monitor that takes bytes
//! away from a file that it lent ends this process by SIGBUS, so one process serves one machine. Source: QEMU,
//! docs/interop/vhost-user.rst (version 9.2). Units: bytes. Integers are in the machine's own order.

mod bell;
mod door;
mod entrance;
mod inflight;
mod log;
mod map;
mod message;
mod serve;
mod session;
mod socket;
mod table;
mod vring;

pub use bell::Bell;
pub use door::Door;
pub use entrance::Entrance;
pub use log::Log;
pub use map::Region;
pub use serve::Serving;
pub use session::{Device, Parts, Queue, Session};
pub use socket::Socket;
pub use table::{Span, Table};

/// `VIRTIO_RING_F_INDIRECT_DESC`.
pub const INDIRECT: u64 = 1 << 28;
/// `VIRTIO_RING_F_EVENT_IDX`.
pub const EVENT_INDEX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
/// `VHOST_F_LOG_ALL`: what is written to the machine's memory is to be noted, for migration.
pub const LOG_ALL: u64 = 1 << 26;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VHOST_USER_PROTOCOL_F_RARP`: a network device tells the network where the machine is, by [`SEND_RARP`].
pub const RARP: u64 = 1 << 2;
/// `VHOST_USER_PROTOCOL_F_NET_MTU`: a network device is told the largest payload, by [`NET_SET_MTU`].
pub const NET_MTU: u64 = 1 << 4;
/// `VHOST_USER_SEND_RARP`: the machine is here now; 64 bits, the first six bytes of which are its address.
pub const SEND_RARP: u32 = 19;
/// `VHOST_USER_NET_SET_MTU`: the largest payload, in 64 bits.
pub const NET_SET_MTU: u32 = 20;

/// What every device can do.
pub const TRANSPORT: u64 = INDIRECT | EVENT_INDEX | VERSION_1 | LOG_ALL | PROTOCOL_FEATURES;
