//! The path of packets, both ways, between a guest that the test drives and a memory port.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows has failed")]

mod frontend;
mod hostile;
mod kept;
mod killed;
mod memo;
mod packets;
mod property;
mod queue;
mod scene;
mod tap;
