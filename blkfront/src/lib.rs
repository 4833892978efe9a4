//! Xen block frontend.
