//! Control over domains: make them, list them, stop them, share memory and CPU among them.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{DomId, Error};

/// What a new domain is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainSpec {
    /// Its name, unique among living domains.
    pub name: String,
    /// Its memory in KiB.
    pub memory_kib: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// Its share of CPU time under contention, against the others' (1 to 65535; 256 is usual).
    pub weight: u16,
    /// The most CPU time it may have, in percent of one CPU; 0 for no limit.
    pub cap: u16,
}

impl DomainSpec {
    /// A domain of that name with one vCPU, 64 MiB, weight 256 and no cap.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), memory_kib: 64 * 1024, vcpus: 1, weight: 256, cap: 0 }
    }
}

/// What a domain is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DomainState {
    /// It may run.
    Running,
    /// It is held until unpaused.
    Paused,
    /// It is gone, but something of it is still in use: pages that a peer has mapped.
    Dying,
}

/// What is known of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainInfo {
    /// Its number.
    pub id: DomId,
    /// What it was made with; the scheduler's part as it is now.
    pub spec: DomainSpec,
    /// Its memory target in KiB, at most `spec.memory_kib`.
    pub target_kib: u64,
    /// What it is doing.
    pub state: DomainState,
    /// CPU time it has used, in nanoseconds.
    pub cpu_ns: u64,
}

impl DomainInfo {
    /// Puts together what is known of domain `id`.
    #[must_use]
    pub fn new(
        id: DomId,
        spec: DomainSpec,
        target_kib: u64,
        state: DomainState,
        cpu_ns: u64,
    ) -> Self {
        Self { id, spec, target_kib, state, cpu_ns }
    }
}

/// Who may make, list and end domains.
pub trait Domains {
    /// Makes a domain, paused as Xen's are.
    ///
    /// # Errors
    ///
    /// Its memory does not fit, its name is taken, or a value is out of range.
    fn create(&self, spec: &DomainSpec) -> Result<DomId, Error>;

    /// All domains, by number.
    ///
    /// # Errors
    ///
    /// The hypervisor cannot be asked.
    fn list(&self) -> Result<Vec<DomainInfo>, Error>;

    /// Holds (`true`) or lets run (`false`) a domain.
    ///
    /// # Errors
    ///
    /// There is no such domain.
    fn pause(&self, id: DomId, paused: bool) -> Result<(), Error>;

    /// Ends a domain at once.
    ///
    /// # Errors
    ///
    /// There is no such domain.
    fn destroy(&self, id: DomId) -> Result<(), Error>;

    /// Sets a domain's memory target in KiB.
    ///
    /// # Errors
    ///
    /// There is no such domain, or the target is above what it was made with or cannot be had.
    fn set_memory_target(&self, id: DomId, target_kib: u64) -> Result<(), Error>;

    /// Sets a domain's weight and cap, as in [`DomainSpec`].
    ///
    /// # Errors
    ///
    /// There is no such domain, or a value is out of range.
    fn set_scheduling(&self, id: DomId, weight: u16, cap: u16) -> Result<(), Error>;
}
