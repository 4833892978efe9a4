//! A network interface over vhost-user, used by a monitor and a driver that the tests are: well-behaved ones, and such
//! as break the protocol.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows has failed")]

mod driver;
mod echo;
mod hostile;
mod life;
mod monitor;
mod offload;
mod scene;
