//! Xen block backend.
