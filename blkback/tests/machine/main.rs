//! A disk over vhost-user, used by drivers and monitors that keep to the protocol, and by some that do not.
#![expect(unsafe_code, reason = "memory that is shared with a device")]

mod raw;
mod served;

mod log;
mod memory;
mod messages;
mod monitors;
mod ranges;
mod reset;
mod standard;
