//! Who lives on this machine, and what each was promised: the broker's account of domains.
//!
//! Pure bookkeeping. Nothing here touches a process, a file or a clock; [`super::keeper`] does to
//! the machine what is decided here. Memory is counted in KiB and promised before it is used: the
//! sum of what all domains were promised never exceeds the machine's total, and what would is
//! refused. Lowering a domain's target gives the difference back for others, raising it takes it
//! again where it is still free (`XENMEM_set_pod_target` and `XEN_DOMCTL_max_mem` do as much on
//! Xen).
//!
//! A number is given once and comes round again only after all others were (domids wrap below
//! `DOMID_FIRST_RESERVED`, xen.h); one that is still alive or dying is passed over.
//!
//! Requests come from any process that may open the control socket, so every value is checked.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::domain::{DomainSpec, DomainState};
use crate::{ConfigError, DomId};

/// The longest name a domain may have, in bytes.
const NAME_MAX: usize = 64;
/// The most virtual CPUs a domain may have (`HVM_MAX_VCPUS`, hvm/hvm_info_table.h).
const VCPUS_MAX: u32 = 128;
/// Memory is handed out in pages of this many KiB.
const PAGE_KIB: u64 = 4;

/// When a domain ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lifetime {
    /// When the last process in it has left.
    UntilLeft,
    /// Only when it is destroyed: processes may come and go.
    UntilDestroyed,
}

/// What is left of a domain after one process has left it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// Other processes are still in it, or it waits for another.
    Stays,
    /// That was the last: the domain is to be ended.
    Ended,
}

/// One domain's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it was made with; the scheduler's part as it is now.
    pub(crate) spec: DomainSpec,
    /// What it is promised now, at most `spec.memory_kib`.
    pub(crate) target_kib: u64,
    /// Whether somebody asked for it to be paused.
    held: bool,
    /// Whether it has not had a process yet.
    waiting: bool,
    /// Whether it is gone but for what others still use of it.
    dying: bool,
    /// When it ends by itself.
    lifetime: Lifetime,
    /// Processes in it.
    members: u32,
}

impl Entry {
    /// What the domain is doing.
    pub(crate) fn state(&self) -> DomainState {
        if self.dying {
            DomainState::Dying
        } else if self.held || self.waiting {
            DomainState::Paused
        } else {
            DomainState::Running
        }
    }

    /// Whether the domain's processes are to be held.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }
}

/// The account of all domains.
#[derive(Debug)]
pub(crate) struct Book {
    total_kib: u64,
    next: u16,
    entries: BTreeMap<DomId, Entry>,
}

impl Book {
    /// A machine with that much memory to give, and no domains.
    pub(crate) fn new(total_kib: u64) -> Self {
        Self { total_kib, next: 1, entries: BTreeMap::new() }
    }

    /// The memory there is to give, in KiB.
    pub(crate) fn total_kib(&self) -> u64 {
        self.total_kib
    }

    /// What is not promised to anybody, in KiB.
    pub(crate) fn free_kib(&self) -> u64 {
        let promised = self.entries.values().map(|entry| entry.target_kib);
        self.total_kib.saturating_sub(promised.fold(0, u64::saturating_add))
    }

    /// Every domain, by number; dying ones too.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DomId, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// Domains that are not dying.
    pub(crate) fn living(&self) -> usize {
        self.entries.values().filter(|entry| !entry.dying).count()
    }

    /// A living domain.
    ///
    /// # Errors
    ///
    /// There is none of that number.
    pub(crate) fn get(&self, id: DomId) -> Result<&Entry, ConfigError> {
        self.entries.get(&id).filter(|entry| !entry.dying).ok_or_else(|| no_such(id))
    }

    fn get_mut(&mut self, id: DomId) -> Result<&mut Entry, ConfigError> {
        self.entries.get_mut(&id).filter(|entry| !entry.dying).ok_or_else(|| no_such(id))
    }

    /// Makes a domain, which waits, paused, for its first process. Its memory is rounded up to whole
    /// pages.
    ///
    /// # Errors
    ///
    /// A value is out of range, the name is taken, the memory does not fit, or there are no
    /// numbers left.
    pub(crate) fn create(
        &mut self,
        spec: &DomainSpec,
        lifetime: Lifetime,
    ) -> Result<DomId, ConfigError> {
        check_name(&spec.name)?;
        let memory_kib = whole_pages("memory", spec.memory_kib)?;
        check_vcpus(spec.vcpus)?;
        check_scheduling(spec.weight, spec.cap, spec.vcpus)?;
        let twin = self.entries.iter().find(|(_, e)| !e.dying && e.spec.name == spec.name);
        if let Some((id, _)) = twin {
            let problem = format!("is the name of domain {id} already");
            return Err(ConfigError::new("domain name", &spec.name, problem));
        }
        self.check_fits("memory", memory_kib, memory_kib)?;
        let id = self.take_number(&spec.name)?;
        let entry = Entry {
            spec: DomainSpec { memory_kib, ..spec.clone() },
            target_kib: memory_kib,
            held: false,
            waiting: true,
            dying: false,
            lifetime,
            members: 0,
        };
        self.entries.insert(id, entry);
        Ok(id)
    }

    /// Counts a process into a domain; the first one lets it run, unless it is held.
    ///
    /// # Errors
    ///
    /// There is no such domain.
    pub(crate) fn enter(&mut self, id: DomId) -> Result<(), ConfigError> {
        let entry = self.get_mut(id)?;
        entry.members = entry.members.saturating_add(1);
        entry.waiting = false;
        Ok(())
    }

    /// Counts a process out of a domain.
    pub(crate) fn leave(&mut self, id: DomId) -> Left {
        let Ok(entry) = self.get_mut(id) else {
            return Left::Stays;
        };
        entry.members = entry.members.saturating_sub(1);
        if entry.members > 0 {
            return Left::Stays;
        }
        match entry.lifetime {
            Lifetime::UntilLeft => Left::Ended,
            Lifetime::UntilDestroyed => {
                entry.waiting = true;
                Left::Stays
            }
        }
    }

    /// Strikes a domain out. While `in_use`, it stays as a dying one, number and memory with it,
    /// until [`Self::bury`].
    ///
    /// # Errors
    ///
    /// There is no such domain.
    pub(crate) fn end(&mut self, id: DomId, in_use: bool) -> Result<(), ConfigError> {
        let entry = self.get_mut(id)?;
        if in_use {
            entry.dying = true;
        } else {
            self.entries.remove(&id);
        }
        Ok(())
    }

    /// Nothing of a dying domain is in use any more: its number and memory are free again.
    pub(crate) fn bury(&mut self, id: DomId) {
        if self.entries.get(&id).is_some_and(|entry| entry.dying) {
            self.entries.remove(&id);
        }
    }

    /// Holds a domain or lets it go.
    ///
    /// # Errors
    ///
    /// There is no such domain.
    pub(crate) fn hold(&mut self, id: DomId, held: bool) -> Result<(), ConfigError> {
        self.get_mut(id)?.held = held;
        Ok(())
    }

    /// Sets what a domain is promised, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// There is no such domain, the target is above what it was made with, or there is not that
    /// much free.
    pub(crate) fn set_target(&mut self, id: DomId, target_kib: u64) -> Result<(), ConfigError> {
        let entry = self.get(id)?;
        let target_kib = whole_pages("memory target", target_kib)?;
        let most = entry.spec.memory_kib;
        if target_kib > most {
            let problem = format!("is more than the {most} KiB that domain {id} was made with");
            return Err(ConfigError::new("memory target", kib(target_kib), problem));
        }
        let more = target_kib.saturating_sub(entry.target_kib);
        self.check_fits("memory target", target_kib, more)?;
        self.get_mut(id)?.target_kib = target_kib;
        Ok(())
    }

    /// Sets a domain's weight and cap.
    ///
    /// # Errors
    ///
    /// There is no such domain, or a value is out of range.
    pub(crate) fn set_scheduling(
        &mut self,
        id: DomId,
        weight: u16,
        cap: u16,
    ) -> Result<(), ConfigError> {
        let entry = self.get_mut(id)?;
        check_scheduling(weight, cap, entry.spec.vcpus)?;
        entry.spec.weight = weight;
        entry.spec.cap = cap;
        Ok(())
    }

    /// Whether `more` KiB, of `asked` in all, can still be promised.
    fn check_fits(&self, thing: &'static str, asked: u64, more: u64) -> Result<(), ConfigError> {
        let free = self.free_kib();
        if more <= free {
            return Ok(());
        }
        let total = self.total_kib;
        let needs = if more == asked { String::new() } else { format!("takes {more} KiB more: ") };
        let problem = format!(
            "does not fit: {needs}of {total} KiB that the hypervisor has, {free} KiB are free"
        );
        Err(ConfigError::new(thing, kib(asked), problem))
    }

    /// The next number nobody has.
    fn take_number(&mut self, name: &str) -> Result<DomId, ConfigError> {
        for _ in 0..DomId::FIRST_RESERVED {
            let candidate = DomId::new(self.next).filter(|id| *id != DomId::ZERO);
            self.next = self.next.checked_add(1).unwrap_or(1);
            let Some(id) = candidate else {
                self.next = 1;
                continue;
            };
            if !self.entries.contains_key(&id) {
                return Ok(id);
            }
        }
        Err(ConfigError::new("domain", name, "cannot be numbered: every number is in use"))
    }
}

fn no_such(id: DomId) -> ConfigError {
    ConfigError::new("domain", id, "does not exist")
}

fn kib(value: u64) -> String {
    format!("{value} KiB")
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let bad = |problem: &'static str| Err(ConfigError::new("domain name", name, problem));
    if name.is_empty() {
        return bad("must not be empty");
    }
    if name.len() > NAME_MAX {
        return bad("is longer than 64 bytes");
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return bad("would be taken for a domain's number: put a letter into it");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+:@".contains(&byte)) {
        return bad("may have letters, digits and any of - _ . + : @");
    }
    if name.starts_with('-') {
        return bad("would be taken for an option: begin with another character than -");
    }
    Ok(())
}

/// That much memory in whole pages; of more than can be counted, the most that can.
fn whole_pages(thing: &'static str, value: u64) -> Result<u64, ConfigError> {
    if value == 0 {
        return Err(ConfigError::new(thing, kib(value), "must be at least one page of 4 KiB"));
    }
    Ok(value.div_ceil(PAGE_KIB).saturating_mul(PAGE_KIB))
}

fn check_vcpus(vcpus: u32) -> Result<(), ConfigError> {
    if (1..=VCPUS_MAX).contains(&vcpus) {
        return Ok(());
    }
    Err(ConfigError::new("vCPUs", vcpus, "must be 1 to 128"))
}

fn check_scheduling(weight: u16, cap: u16, vcpus: u32) -> Result<(), ConfigError> {
    if weight == 0 {
        return Err(ConfigError::new("weight", weight, "must be 1 to 65535"));
    }
    let most = vcpus.saturating_mul(100);
    if u32::from(cap) > most {
        let problem = format!("must be at most {most}, 100 for each vCPU; 0 is no cap");
        return Err(ConfigError::new("cap", cap, problem));
    }
    Ok(())
}
