//! Xen shared rings and what is written on them.
//!
//! A ring is one or more pages that a frontend owns and grants to a backend. The frontend puts
//! requests into its slots and the backend puts responses over requests that it has taken; four
//! indexes in front of the slots say how far each has come and from where on each wants to be told.
//!
//! ```text
//!            push -> publish                         take_request
//!   Front  =================>  slots and indexes  ==================>  Back
//!          <=================                     <==================
//!            take_response                           respond -> publish
//! ```
//!
//! The modules in the order in which a request meets them: [`index`] and [`layout`] say where
//! things lie, [`shared`] is the only one that touches them, [`front`] and [`back`] are the two
//! roles, [`slot`] is the proof that a request was taken and is yet to be answered, [`notify`] is
//! what a role tells its caller to do next, [`polling`] decides how long to look before sleeping,
//! [`listener`] when to be woken by events, and [`protocol`] with [`wire`] is what the slots mean. [`packet`] is what network packets, which
//! travel beside a ring, hold for either end to know. [`split`] is what virtio drivers have instead of a ring.
//!
//! Neither end trusts the other: what the peer controls is copied out once and checked as a copy,
//! and an index that cannot be is a [`Fault`]. The ring says whether to notify; it never does.
//!
//! Nothing here allocates for a request. Source: `xen/include/public/io/ring.h`, RELEASE-4.17.
#![no_std]

extern crate alloc;

pub mod back;
pub mod counter;
pub mod fault;
pub mod front;
pub mod index;
pub mod layout;
pub mod listener;
pub mod note;
pub mod notify;
pub mod packet;
pub mod polling;
pub mod waiting;
pub mod protocol;
pub mod shared;
pub mod slot;
pub mod split;
pub mod wire;

pub use back::Back;
pub use counter::Counter;
pub use fault::Fault;
pub use front::{Front, Full};
pub use index::RingIndex;
pub use listener::Listener;
pub use note::Note;
pub use notify::{Notify, Recheck};
pub use polling::Polling;
pub use protocol::Protocol;
pub use slot::ResponseSlot;
pub use waiting::Waiting;
