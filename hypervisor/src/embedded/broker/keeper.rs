//! Domain control: what the book decides, done to the processes.
//!
//! Stage before: the broker's loop, which has read a request and knows who sent it. Stage after:
//! [`super::book`] for what may be, [`super::cpu`] for the machine. The book comes first, so that
//! nothing is done for a request that is refused; where the machine then refuses, the book is
//! put back.

#[cfg(test)]
mod tests;

use super::book::{Book, Left, Lifetime};
use super::cpu::Shares;
use crate::domain::{DomainInfo, DomainSpec};
use crate::{ConfigError, DomId, Error, HostError};

/// The account of all domains, and the means to hold them to it.
#[derive(Debug)]
pub(crate) struct Keeper {
    book: Book,
    shares: Shares,
}

impl Keeper {
    /// A machine with that much memory to give, in KiB.
    pub(crate) fn new(total_kib: u64, shares: Shares) -> Self {
        Self { book: Book::new(total_kib), shares }
    }

    /// The account itself, to be looked at.
    pub(crate) fn book(&self) -> &Book {
        &self.book
    }

    /// What cannot be enforced on this machine, and why.
    pub(crate) fn unenforced(&self) -> &[String] {
        self.shares.unenforced()
    }

    /// Makes a domain, which waits, paused, for its first process.
    ///
    /// # Errors
    ///
    /// As [`Book::create`].
    pub(crate) fn create(
        &mut self,
        spec: &DomainSpec,
        lifetime: Lifetime,
    ) -> Result<DomId, ConfigError> {
        let id = self.book.create(spec, lifetime)?;
        self.shares.add(id, &self.book.get(id)?.spec);
        Ok(id)
    }

    /// Process `pid` is in domain `id` from now on.
    ///
    /// # Errors
    ///
    /// There is no such domain.
    pub(crate) fn enter(&mut self, id: DomId, pid: i32) -> Result<(), ConfigError> {
        self.book.enter(id)?;
        self.shares.enter(id, pid);
        Ok(())
    }

    /// Process `pid`, which had entered domain `id`, is in it no longer.
    pub(crate) fn leave(&mut self, id: DomId, pid: i32) -> Left {
        self.shares.leave(id, pid);
        let left = self.book.leave(id);
        if left == Left::Ended {
            self.shares.release(id);
        }
        left
    }

    /// Kills the processes of a domain that is to be destroyed. One that ends because its last
    /// process left is not killed: what that process started goes on, and a process that another
    /// hypervisor moved here at this very moment is none of ours.
    pub(crate) fn kill(&mut self, id: DomId) {
        self.shares.kill(id);
    }

    /// Strikes a domain out. While `in_use`, its number and memory stay taken until
    /// [`Self::bury`].
    ///
    /// # Errors
    ///
    /// There is no such domain.
    pub(crate) fn end(&mut self, id: DomId, in_use: bool) -> Result<(), ConfigError> {
        self.book.end(id, in_use)?;
        self.shares.remove(id);
        Ok(())
    }

    /// Nothing of a dying domain is in use any more.
    pub(crate) fn bury(&mut self, id: DomId) {
        self.book.bury(id);
        self.shares.sweep();
    }

    /// Every domain, by number.
    pub(crate) fn list(&mut self) -> Vec<DomainInfo> {
        self.shares.sweep();
        let shares = &self.shares;
        let info = |(id, entry): (DomId, &super::book::Entry)| {
            let spec = entry.spec.clone();
            DomainInfo::new(id, spec, entry.target_kib, entry.state(), shares.cpu_ns(id))
        };
        self.book.iter().map(info).collect()
    }

    /// Holds a domain or lets it go.
    ///
    /// # Errors
    ///
    /// There is no such domain, or the kernel refused.
    pub(crate) fn pause(&mut self, id: DomId, paused: bool) -> Result<(), Error> {
        let before = self.book.get(id)?.is_held();
        self.book.hold(id, paused)?;
        let done = self.shares.hold(id, paused);
        self.or_back(done, |book| book.hold(id, before))
    }

    /// Sets a domain's memory target in KiB.
    ///
    /// # Errors
    ///
    /// As [`Book::set_target`]; or the domain's processes use more and cannot give it back.
    pub(crate) fn set_memory_target(&mut self, id: DomId, target_kib: u64) -> Result<(), Error> {
        let before = self.book.get(id)?.target_kib;
        self.book.set_target(id, target_kib)?;
        let done = self.shares.set_memory(id, self.book.get(id)?.target_kib);
        self.or_back(done, |book| book.set_target(id, before))
    }

    /// Sets a domain's weight and cap.
    ///
    /// # Errors
    ///
    /// There is no such domain, a value is out of range, or the kernel refused.
    pub(crate) fn set_scheduling(&mut self, id: DomId, weight: u16, cap: u16) -> Result<(), Error> {
        let spec = &self.book.get(id)?.spec;
        let before = (spec.weight, spec.cap);
        self.book.set_scheduling(id, weight, cap)?;
        let done = self.shares.set_scheduling(id, weight, cap);
        self.or_back(done, |book| book.set_scheduling(id, before.0, before.1))
    }

    /// Passes on what the machine said, putting the book back where it said no.
    fn or_back<E: Into<Error>>(
        &mut self,
        done: Result<(), E>,
        back: impl FnOnce(&mut Book) -> Result<(), ConfigError>,
    ) -> Result<(), Error> {
        done.or_else(|error| {
            // What was so a moment ago can be so again.
            back(&mut self.book)?;
            Err(error.into())
        })
    }
}

/// The memory to give where nobody said how much: three quarters of the machine's, in KiB.
///
/// # Errors
///
/// The kernel does not say how much there is.
pub(crate) fn default_total_kib() -> Result<u64, HostError> {
    let text = std::fs::read_to_string("/proc/meminfo")
        .map_err(|error| HostError::from_io("read /proc/meminfo", &error))?;
    mem_total_kib(&text)
        .map(|kib| kib.saturating_mul(3).div_euclid(16).saturating_mul(4))
        .ok_or_else(|| HostError::new("find MemTotal in /proc/meminfo", libc::ENODATA))
}

/// `MemTotal` (proc(5)).
fn mem_total_kib(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    rest.trim().strip_suffix("kB")?.trim().parse().ok()
}
