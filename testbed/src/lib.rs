//! Machines, guests and hostile peers for domkit's tests, benches and trials.
//!
//! Everything here starts the real programs as the processes that a user would start, each scene
//! in a folder of its own, and ends them when the scene goes.

pub mod fio;
pub mod hostile;
pub mod lan;
pub mod libxl;
pub mod network;
pub mod packages;
pub mod pauses;
pub mod programs;
pub mod scene;
pub mod skip;
pub mod streams;
pub mod vm;
pub mod watched;
pub mod xen;
