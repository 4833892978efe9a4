//! Holding each domain's processes to what the domain was promised: CPU time and memory.
//!
//! [`super::keeper`] says what each domain is to have; here that is done to its processes, by
//! cgroup v2 (kernel documentation, *Control Group v2*): a group for each domain, in a subtree of
//! the hypervisor's own ([`subtree`]). A domain's weight becomes `cpu.weight`, its cap and number
//! of vCPUs become `cpu.max`, its memory target becomes `memory.max`; pausing is
//! `cgroup.freeze`, and its CPU time is `cpu.stat`'s. A process is moved into the group when it
//! enters the domain, and its later children are born there.
//!
//! Where a controller cannot be had, that is said once, loudly, as a line beginning `UNENFORCED`,
//! and everything else goes on. Without any group at all, pausing is `SIGSTOP` to the domain's
//! processes and CPU time is read from `/proc` ([`process`]).
//!
//! A process that is in several domains belongs to the group of the first it entered. The
//! broker's own process, which tests let be a domain too, is never moved, stopped or killed.
//!
//! Units: KiB, nanoseconds, percent of one CPU.

mod process;
mod subtree;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use self::process::Process;
use self::subtree::{Group, Subtree};
use crate::domain::DomainSpec;
use crate::{ConfigError, DomId, Error, HostError};

/// What a domain's processes may use beyond the domain's memory, in KiB: their own code, heap,
/// stacks and page tables, and the page cache they fill.
pub(crate) const OVERHEAD_KIB: u64 = 64 * 1024;

/// What all domains get, and the means to see to it.
#[derive(Debug)]
pub(crate) struct Shares {
    subtree: Option<Subtree>,
    unenforced: Vec<String>,
    domains: BTreeMap<DomId, Share>,
    /// Groups that could not be removed yet: something in them was still on its way out.
    leftovers: Vec<Group>,
}

/// What one domain gets.
#[derive(Debug)]
struct Share {
    spec: DomainSpec,
    target_kib: u64,
    held: bool,
    group: Option<Group>,
    members: Vec<Member>,
    /// CPU time of processes that were never in the group and have left.
    past_ns: u64,
    /// Where the process that left last had come from.
    home: Option<PathBuf>,
}

/// A process that entered a domain.
#[derive(Debug)]
struct Member {
    process: Process,
    place: Place,
}

/// Where a domain's process is held to its share.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// In the domain's group; before that it was in the cgroup named here.
    Group(Option<PathBuf>),
    /// Nowhere, but it and what it starts is signalled, and its time counted, from this much CPU
    /// time and this moment on.
    Outside { before_ns: u64, since: u64 },
    /// Another domain's, or the broker itself: left alone.
    Elsewhere,
}

impl Shares {
    /// Makes ready what this machine allows, and says what it does not.
    pub(crate) fn open() -> Self {
        let (subtree, unenforced) = match Subtree::make() {
            Ok(subtree) => {
                let missing = subtree.missing().to_vec();
                (Some(subtree), missing)
            }
            Err(reason) => (
                None,
                vec![format!(
                    "CPU weight and cap, and memory limits: {reason}; pausing stops processes by \
                     signal"
                )],
            ),
        };
        for item in &unenforced {
            tracing::warn!("UNENFORCED: {item}");
        }
        Self { subtree, unenforced, domains: BTreeMap::new(), leftovers: Vec::new() }
    }

    /// Counts and signals only: for a machine within one process, where there is nothing to move.
    pub(crate) fn without_groups() -> Self {
        Self {
            subtree: None,
            unenforced: vec!["CPU weight and cap, and memory limits: not asked for".to_owned()],
            domains: BTreeMap::new(),
            leftovers: Vec::new(),
        }
    }

    /// What cannot be enforced, and why; empty where all is.
    pub(crate) fn unenforced(&self) -> &[String] {
        &self.unenforced
    }

    /// A new domain, with nothing in it.
    pub(crate) fn add(&mut self, id: DomId, spec: &DomainSpec) {
        let share = Share {
            spec: spec.clone(),
            target_kib: spec.memory_kib,
            held: false,
            group: None,
            members: Vec::new(),
            past_ns: 0,
            home: None,
        };
        self.domains.insert(id, share);
    }

    /// Holds process `pid` to domain `id`'s share from now on.
    pub(crate) fn enter(&mut self, id: DomId, pid: i32) {
        let Some(process) = Process::find(pid) else {
            return;
        };
        let known = |share: &Share| share.members.iter().any(|member| member.process == process);
        let elsewhere = process.is_us() || self.domains.values().any(known);
        let Some(share) = self.domains.get_mut(&id) else {
            return;
        };
        let place = if elsewhere {
            Place::Elsewhere
        } else {
            match share.take_in(id, self.subtree.as_ref(), &process) {
                Some(place) => place,
                None => Place::Outside { before_ns: process.cpu_ns(), since: process::now() },
            }
        };
        if share.held && matches!(place, Place::Outside { .. }) {
            process.stop();
        }
        share.members.push(Member { process, place });
    }

    /// Lets process `pid`, which left the domain, go back to where it came from.
    pub(crate) fn leave(&mut self, id: DomId, pid: i32) {
        let Some(share) = self.domains.get_mut(&id) else {
            return;
        };
        // The last is the one that counts for least: a process can be in with several connections,
        // and its first is the one that moved it.
        let found = share.members.iter().rposition(|member| member.process.pid() == pid);
        if let Some(at) = found {
            let member = share.members.remove(at);
            share.let_go(&member);
        }
        self.sweep();
    }

    /// Stops (`true`) or continues a domain's processes.
    ///
    /// # Errors
    ///
    /// The kernel refused to.
    pub(crate) fn hold(&mut self, id: DomId, held: bool) -> Result<(), HostError> {
        let Some(share) = self.domains.get_mut(&id) else {
            return Ok(());
        };
        share.held = held;
        if let Some(group) = &share.group {
            group.freeze(held)?;
        }
        for process in share.outside() {
            if held { process.stop() } else { process.go_on() }
        }
        Ok(())
    }

    /// Sets a domain's weight and cap.
    ///
    /// # Errors
    ///
    /// The kernel refused to.
    pub(crate) fn set_scheduling(
        &mut self,
        id: DomId,
        weight: u16,
        cap: u16,
    ) -> Result<(), HostError> {
        let Some(share) = self.domains.get_mut(&id) else {
            return Ok(());
        };
        share.spec.weight = weight;
        share.spec.cap = cap;
        match &share.group {
            Some(group) => group.set_cpu(weight, cap, share.spec.vcpus),
            None => Ok(()),
        }
    }

    /// Sets a domain's memory target.
    ///
    /// # Errors
    ///
    /// It uses more than that now and cannot give it back, or the kernel refused.
    pub(crate) fn set_memory(&mut self, id: DomId, target_kib: u64) -> Result<(), Error> {
        let Some(share) = self.domains.get_mut(&id) else {
            return Ok(());
        };
        if let Some(group) = &share.group {
            let limit = target_kib.saturating_add(OVERHEAD_KIB);
            let lowered = target_kib < share.target_kib;
            if let Some(used) = group.set_memory(limit, lowered)? {
                let problem = format!(
                    "is too low: domain {id} uses {used} KiB now and would be killed at its limit \
                     of {limit} KiB, which is the target and {OVERHEAD_KIB} KiB of overhead"
                );
                let target = format!("{target_kib} KiB");
                return Err(ConfigError::new("memory target", target, problem).into());
            }
        }
        share.target_kib = target_kib;
        Ok(())
    }

    /// Lets go what processes that left the domain have started in it: what nobody asked to end
    /// goes on, and is held to the domain's share no longer.
    pub(crate) fn release(&mut self, id: DomId) {
        if let Some(Share { group: Some(group), home: Some(home), .. }) = self.domains.get(&id) {
            group.empty_into(home);
        }
    }

    /// Kills every process of a domain.
    pub(crate) fn kill(&mut self, id: DomId) {
        let Some(share) = self.domains.get_mut(&id) else {
            return;
        };
        if let Some(group) = &share.group {
            group.kill();
        }
        process::kill_all(&share.roots());
    }

    /// The CPU time a domain has used, in nanoseconds.
    pub(crate) fn cpu_ns(&self, id: DomId) -> u64 {
        let Some(share) = self.domains.get(&id) else {
            return 0;
        };
        let grouped = share.group.as_ref().map_or(0, Group::cpu_ns);
        let outside = share.members.iter().map(Member::outside_ns);
        outside.fold(grouped.saturating_add(share.past_ns), u64::saturating_add)
    }

    /// The group that holds a domain's processes, if there is one.
    #[cfg(test)]
    pub(crate) fn group(&self, id: DomId) -> Option<PathBuf> {
        self.domains.get(&id)?.group.as_ref().map(|group| group.path().to_owned())
    }

    /// A domain is no more.
    pub(crate) fn remove(&mut self, id: DomId) {
        let Some(mut share) = self.domains.remove(&id) else {
            return;
        };
        for member in std::mem::take(&mut share.members) {
            share.let_go(&member);
        }
        if let Some(group) = share.group.take() {
            if let Some(home) = &share.home {
                group.empty_into(home);
            }
            self.leftovers.push(group);
        }
        self.sweep();
    }

    /// Removes groups that have become empty.
    pub(crate) fn sweep(&mut self) {
        self.leftovers.retain(|group| !group.remove());
    }
}

impl Drop for Shares {
    /// Lets all processes go on, unenforced, and leaves no group behind.
    fn drop(&mut self) {
        for id in self.domains.keys().copied().collect::<Vec<_>>() {
            // A domain that stays stopped has at least been named.
            if let Err(error) = self.hold(id, false) {
                tracing::warn!("domain {id} stays paused: {error}");
            }
            self.remove(id);
        }
        // What was just killed needs a moment to be gone.
        for _ in 0..200 {
            self.sweep();
            if self.leftovers.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for group in &self.leftovers {
            tracing::warn!("{} stays behind: processes are still in it", group.path().display());
        }
    }
}

impl Share {
    /// Moves a process into the domain's group, which is made where it is not there yet. `None`
    /// where that cannot be, which has then been said.
    fn take_in(
        &mut self,
        id: DomId,
        subtree: Option<&Subtree>,
        process: &Process,
    ) -> Option<Place> {
        let subtree = subtree?;
        if self.group.is_none() {
            match self.make_group(id, subtree) {
                Ok(group) => self.group = Some(group),
                Err(error) => {
                    tracing::warn!("UNENFORCED: all limits of domain {id}: {error}");
                    return None;
                }
            }
        }
        let home = subtree.group_of(process.pid());
        match self.group.as_ref()?.take_in(process.pid()) {
            Ok(()) => Some(Place::Group(home)),
            Err(error) => {
                tracing::warn!(
                    "UNENFORCED: all limits of process {} in domain {id}: {error}",
                    process.pid()
                );
                None
            }
        }
    }

    fn make_group(&self, id: DomId, subtree: &Subtree) -> Result<Group, HostError> {
        let group = subtree.add(&format!("dom{id}"))?;
        let all_set = group
            .set_cpu(self.spec.weight, self.spec.cap, self.spec.vcpus)
            .and_then(|()| group.set_memory(self.target_kib.saturating_add(OVERHEAD_KIB), false))
            .and_then(|_| if self.held { group.freeze(true) } else { Ok(()) });
        if let Err(error) = all_set {
            group.remove();
            return Err(error);
        }
        Ok(group)
    }

    /// A member is no longer this domain's concern.
    fn let_go(&mut self, member: &Member) {
        match &member.place {
            Place::Group(Some(home)) => {
                if member.process.is_alive() {
                    subtree::move_home(home, member.process.pid());
                }
                self.home = Some(home.clone());
            }
            Place::Group(None) | Place::Elsewhere => {}
            Place::Outside { .. } => {
                self.past_ns = self.past_ns.saturating_add(member.outside_ns());
                if self.held {
                    member.process.go_on();
                }
            }
        }
    }

    /// The processes that no group holds, and since when they are in.
    fn roots(&self) -> Vec<(Process, u64)> {
        let since = |member: &Member| match member.place {
            Place::Outside { since, .. } => Some((member.process.clone(), since)),
            Place::Group(_) | Place::Elsewhere => None,
        };
        self.members.iter().filter_map(since).collect()
    }

    /// Those, and the ones they started.
    fn outside(&self) -> Vec<Process> {
        process::with_descendants(&self.roots())
    }
}

impl Member {
    /// CPU time since it entered, where no group counts it.
    fn outside_ns(&self) -> u64 {
        match self.place {
            Place::Outside { before_ns, .. } => self.process.cpu_ns().saturating_sub(before_ns),
            Place::Group(_) | Place::Elsewhere => 0,
        }
    }
}
