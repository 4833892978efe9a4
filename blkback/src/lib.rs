//! Xen block backend.

pub mod connect;
pub mod control;
pub mod engine;
pub mod vdev;
