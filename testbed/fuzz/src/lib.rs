//! What the fuzz targets share.

pub mod bytes;
pub mod disk;
pub mod frontend;
pub mod memory;
pub mod platform;
pub mod store;
