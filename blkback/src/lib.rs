//! Xen block backend.

pub mod connect;
pub mod engine;
