//! A mark on what a process leaves for the next one, and on the ring that it belongs to.

use std::fs::File;
use std::io::{self, Read as _};

/// A number that nothing else is marked with, and never zero, which a new ring has.
///
/// # Errors
///
/// The kernel has no random numbers for us.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes) | 1)
}
