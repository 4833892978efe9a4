//! Words that outlive the process, each stored whole and in the order of the program.

/// Where a journal lies. A word beyond the end reads as zero and is not stored; none is asked for.
pub trait Cells {
    /// How many words there are.
    fn count(&self) -> usize;

    /// Loads one.
    fn load(&self, at: usize) -> u64;

    /// Stores one, after everything that was stored before.
    fn store(&self, at: usize, value: u64);
}
