//! Xen block backend.

pub mod connect;
pub mod engine;
pub mod vdev;
