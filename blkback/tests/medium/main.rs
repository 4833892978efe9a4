//! Engines and the media behind them, by what can be seen from outside.
//!
//! Tests that need root (loop devices, mounts) say loudly that they are skipped where it is missing.
#![expect(unsafe_code, reason = "the buffers are raw memory, as a guest's pages are")]

mod block;
mod buffers;
mod bytes;
mod drive;
mod durability;
mod host;
mod open;
