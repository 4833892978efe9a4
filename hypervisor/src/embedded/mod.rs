//! A hypervisor that any Linux machine can run: domains are processes.
//!
//! One process, the [`broker`], owns memory and CPU shares and introduces domains to each other. A
//! domain is a process that joined it ([`Domain::join`]). From then on the two ends of a device
//! work without the broker: a grant is mapped and copied in user space, and an event is a write
//! to an eventfd.
//!
//! ```text
//!   guest process                 broker                  backend process
//!   Domain ── control.sock ──> connections <── control.sock ── Domain
//!     │                            │                             │
//!     │  RAM: sealed memfd  <──────┴── handed to users of it ──> │ maps it whole, once
//!     │  grant table v1, marks         (SCM_RIGHTS)              │ checks entries, sets its mark
//!     └─ event channel: a shared word and two eventfds ──────────┘
//! ```
//!
//! It behaves as Xen does where drivers can tell: grant statuses, a grant that is busy while
//! somebody maps it, event ports that become unbound when their peer goes, memory of a dead domain
//! that lives on while a peer has it mapped.
//!
//! # Trust, and the one honest difference
//!
//! On Xen nothing but the granted pages can be reached. Here a process that may use one page of a
//! domain holds that domain's memfd, and if it breaks these rules on purpose it can reach every page
//! of it. Likewise the two ends of an event channel share its file descriptors, and one of them that
//! breaks the rules can disturb that channel. Nothing of this reaches a third domain, and no process
//! can be made to fault: memory is sealed against shrinking. So this hypervisor is for running,
//! testing and measuring drivers on a machine of one's own, not for keeping strangers apart.
//!
//! Only processes of the same user (or root) can join.

mod arena;
pub mod broker;
mod channel;
mod control;
mod frame;
mod grant_table;
mod granting;
mod map;
mod pages;
mod peer;
mod place;
mod session;
mod store;
mod using;

pub use channel::EventChannel;
pub use control::{Control, MachineInfo};
pub use pages::Pages;
pub use place::{Lock, Place};
pub use session::Domain;
pub use using::Mapping;

#[cfg(test)]
mod tests;
