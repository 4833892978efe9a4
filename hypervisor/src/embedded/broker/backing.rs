//! The memory of domains, and who uses it.
//!
//! A [`Backing`] is the RAM and grant table of one domain for as long as one of its processes has
//! it. When that process leaves, the backing is *retired*: nobody new may use it, and it is kept
//! until the last user gives it up. So a domain that is joined again starts with fresh memory, and
//! users of the old keep what they mapped.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::embedded::grant_table::{MARKS_BYTES, Marks, TABLE_BYTES, Table, USERS};
use crate::embedded::map::sealed_file;
use crate::{DomId, HostError, PAGE_SIZE};

/// One domain's memory.
#[derive(Debug)]
pub(crate) struct Backing {
    domain: DomId,
    pub(crate) pages: u32,
    pub(crate) ram: OwnedFd,
    /// Opened for reading only.
    pub(crate) table_to_read: OwnedFd,
    pub(crate) marks_file: OwnedFd,
    table: Table,
    marks: Marks,
    /// One bit for each user.
    users: u32,
    retired: bool,
}

/// What a domain's process is handed: the table's file, to write.
pub(crate) struct Made {
    pub(crate) key: u64,
    pub(crate) table: OwnedFd,
}

/// A use of a domain's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) backing: u64,
    pub(crate) slot: u32,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Backings {
    all: BTreeMap<u64, Backing>,
    next: u64,
}

impl Backings {
    /// New memory for `domain`.
    pub(crate) fn make(
        &mut self,
        domain: DomId,
        kib: u64,
        target_kib: u64,
    ) -> Result<Made, HostError> {
        let too_large = || {
            HostError::new(
                format!("make {kib} KiB of memory for domain {domain}"),
                Errno::EFBIG as i32,
            )
        };
        let page_kib = (PAGE_SIZE as u64) >> 10;
        let pages = u32::try_from(kib.div_euclid(page_kib)).map_err(|_| too_large())?;
        let bytes = u64::from(pages).saturating_mul(PAGE_SIZE as u64);
        let ram = sealed_file("domain-ram", bytes)?;
        let table_file = sealed_file("grant-table", TABLE_BYTES as u64)?;
        let marks_file = sealed_file("grant-marks", MARKS_BYTES as u64)?;
        let table = Table::of(&table_file, true)?;
        table.set_target(u32::try_from(target_kib.div_euclid(page_kib)).unwrap_or(pages));
        table.set_alive(true);
        let backing = Backing {
            domain,
            pages,
            ram,
            table_to_read: reopen_to_read(&table_file)?,
            marks: Marks::of(&marks_file)?,
            marks_file,
            table,
            users: 0,
            retired: false,
        };
        let key = self.next;
        self.next = self.next.wrapping_add(1);
        self.all.insert(key, backing);
        Ok(Made { key, table: table_file })
    }

    /// One of them.
    pub(crate) fn get(&self, key: u64) -> Option<&Backing> {
        self.all.get(&key)
    }

    /// The memory that `domain` has now, for one more user.
    pub(crate) fn share(&mut self, domain: DomId) -> Result<(Share, &Backing), HostError> {
        let refused = |why: &str, errno: Errno| {
            HostError::new(format!("use the memory of domain {domain}: {why}"), errno as i32)
        };
        let found = self.all.iter_mut().find(|(_, one)| one.domain == domain && !one.retired);
        let Some((&key, backing)) = found else {
            return Err(refused("there is none", Errno::ESRCH));
        };
        let Some(slot) = (0..USERS).find(|slot| backing.users & bit(*slot) == 0) else {
            return Err(refused(&format!("{USERS} already do, which is the most"), Errno::EUSERS));
        };
        backing.users |= bit(slot);
        Ok((Share { backing: key, slot }, backing))
    }

    /// A use ends, and with it whatever the user still had marked.
    pub(crate) fn release(&mut self, share: Share) -> Option<DomId> {
        let backing = self.all.get_mut(&share.backing)?;
        backing.marks.sweep(&backing.marks_file, bit(share.slot));
        backing.users &= !bit(share.slot);
        let domain = backing.domain;
        self.forget_if_unused(share.backing);
        Some(domain)
    }

    /// The process that had this memory is gone: nobody new may use it.
    pub(crate) fn retire(&mut self, key: u64) {
        if let Some(backing) = self.all.get_mut(&key) {
            backing.retired = true;
            backing.table.set_alive(false);
        }
        self.forget_if_unused(key);
    }

    /// Whether `domain` has memory that is not retired.
    pub(crate) fn has(&self, domain: DomId) -> bool {
        self.all.values().any(|one| one.domain == domain && !one.retired)
    }

    /// Whether anybody uses retired memory of `domain`.
    pub(crate) fn lingers(&self, domain: DomId) -> bool {
        self.all.values().any(|one| one.domain == domain && one.retired)
    }

    /// Tells the domain its new memory target.
    pub(crate) fn set_target(&self, domain: DomId, target_kib: u64) {
        let page_kib = (PAGE_SIZE as u64) >> 10;
        let pages = u32::try_from(target_kib.div_euclid(page_kib)).unwrap_or(u32::MAX);
        for one in self.all.values().filter(|one| one.domain == domain) {
            one.table.set_target(pages);
        }
    }

    fn forget_if_unused(&mut self, key: u64) {
        if self.all.get(&key).is_some_and(|one| one.retired && one.users == 0) {
            self.all.remove(&key);
        }
    }
}

fn bit(slot: u32) -> u32 {
    1_u32.wrapping_shl(slot)
}

/// The same file, through which it cannot be written.
fn reopen_to_read(file: &OwnedFd) -> Result<OwnedFd, HostError> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| HostError::new(format!("open {path} to read"), errno as i32))
}
