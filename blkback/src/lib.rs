//! Xen block backend.

pub mod engine;
