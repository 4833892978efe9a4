//! A virtual machine's memory, by the addresses that its drivers use.

/// Bytes at guest-physical addresses, copied out and in. Nobody keeps the machine from writing them at the
/// same moment: what was copied out is untrusted.
pub trait Ram {
    /// Copies `into.len()` bytes from `at` on.
    ///
    /// # Errors
    ///
    /// There is no memory at some of these addresses; what `into` holds then means nothing.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), Outside>;

    /// Copies `from` to `at`.
    ///
    /// # Errors
    ///
    /// There is no memory at some of these addresses; what comes before them may have been written.
    fn write(&self, at: u64, from: &[u8]) -> Result<(), Outside>;
}

/// Addresses at which a machine has no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {at:#x} are outside the machine's memory")]
pub struct Outside {
    /// The first.
    pub at: u64,
    /// How many bytes.
    pub len: u64,
}
