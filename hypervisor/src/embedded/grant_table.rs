//! The grant table in shared memory, and the marks of those who use its entries.
//!
//! Source: `grant_table.h` (RELEASE-4.17), version 1 of the layout:
//!
//! ```text
//!   byte 0      2       4            8
//!        flags │ domid │ frame       │     one entry; frame counts the granter's RAM in pages
//! ```
//!
//! The table is written by the granting domain and only read by others; it is followed by a page
//! of status words that the broker writes. Who uses an entry says so in a file of its own, the
//! marks: one word an entry, one bit a using session. That is what makes revoking exact with no
//! lock and no call:
//!
//! ```text
//!   using:    set own mark,  then read the entry     granted? go on : take the mark away
//!   revoking: clear entry,   then read the marks     none?    done  : put the entry back, "busy"
//! ```
//!
//! All four are sequentially consistent, so at least one side sees the other. A session that dies
//! leaves its marks behind; the broker takes them away.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use nix::unistd::{Whence, lseek};

use crate::memory::{Access, GrantStatus};
use crate::{DomId, GrantRef, HostError, PAGE_SIZE};

use super::map::Map;

/// Entries in a table: 128 frames of 512.
pub(crate) const ENTRIES: u32 = 128 * 512;
/// Entries below this are the toolstack's (`GNTTAB_NR_RESERVED_ENTRIES`).
pub(crate) const RESERVED: u32 = 8;
/// Sessions that may use one domain's memory at the same time: bits in a mark word, less one that
/// stays clear.
pub(crate) const USERS: u32 = 31;
/// Bytes of a table file: the entries and the page of status words.
pub(crate) const TABLE_BYTES: usize = ENTRIES as usize * 8 + PAGE_SIZE;
/// Bytes of a marks file.
pub(crate) const MARKS_BYTES: usize = ENTRIES as usize * 4;

/// `GTF_permit_access`.
const PERMIT_ACCESS: u16 = 1;
/// `GTF_type_mask`.
const TYPE_MASK: u16 = 3;
/// `GTF_readonly`.
const READONLY: u16 = 1 << 2;

/// The status words, numbered from the start of the file.
const ALIVE: usize = ENTRIES as usize * 2;
const TARGET: usize = ALIVE + 1;

/// One entry, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

impl Entry {
    /// Offers `frame` to `domain`.
    pub(crate) fn offer(domain: DomId, frame: u32, access: Access) -> Self {
        let flags = match access {
            Access::ReadOnly => PERMIT_ACCESS | READONLY,
            Access::ReadWrite => PERMIT_ACCESS,
        };
        Self(u64::from(flags) | (u64::from(domain.get()) << 16) | (u64::from(frame) << 32))
    }

    /// What `user` may reach through it, as `_set_status_v1` decides: a wrong type, a wrong domain
    /// and writing through a read-only grant are all the general error.
    pub(crate) fn permits(self, user: DomId, access: Access) -> Result<u32, GrantStatus> {
        let bytes = self.0;
        let flags = bytes as u16;
        let domain = (bytes >> 16) as u16;
        let writes = access == Access::ReadWrite;
        if flags & TYPE_MASK != PERMIT_ACCESS
            || domain != user.get()
            || (writes && flags & READONLY != 0)
        {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        Ok((bytes >> 32) as u32)
    }
}

/// A table, as anybody who has it mapped sees it.
#[derive(Debug)]
pub(crate) struct Table {
    map: Map,
}

impl Table {
    /// Maps a table file. Only the granting domain and the broker write to it.
    pub(crate) fn of(file: impl AsFd, writable: bool) -> Result<Self, HostError> {
        Ok(Self { map: Map::of(file, TABLE_BYTES, writable)? })
    }

    /// The entry, read once; `None` for a reference beyond the table.
    pub(crate) fn read(&self, gref: GrantRef) -> Option<Entry> {
        if gref.0 >= ENTRIES {
            return None;
        }
        let word = self.map.entry(gref.0 as usize)?;
        Some(Entry(u64::from_le(word.load(SeqCst))))
    }

    /// Writes the entry as a whole; `None` clears it.
    pub(crate) fn write(&self, gref: GrantRef, entry: Option<Entry>) {
        if gref.0 < ENTRIES
            && let Some(word) = self.map.entry(gref.0 as usize)
        {
            word.store(entry.map_or(0, |entry| entry.0).to_le(), SeqCst);
        }
    }

    /// Whether the domain lives.
    pub(crate) fn alive(&self) -> bool {
        self.map.word(ALIVE).is_some_and(|word| word.load(Relaxed) != 0)
    }

    /// Says whether the domain lives. The broker's to write.
    pub(crate) fn set_alive(&self, alive: bool) {
        if let Some(word) = self.map.word(ALIVE) {
            word.store(u32::from(alive), SeqCst);
        }
    }

    /// The domain's memory target in pages.
    pub(crate) fn target(&self) -> u32 {
        self.map.word(TARGET).map_or(0, |word| word.load(Relaxed))
    }

    /// Sets the memory target. The broker's to write.
    pub(crate) fn set_target(&self, pages: u32) {
        if let Some(word) = self.map.word(TARGET) {
            word.store(pages, Relaxed);
        }
    }
}

/// Who uses which entry of one table.
#[derive(Debug)]
pub(crate) struct Marks {
    map: Map,
}

impl Marks {
    /// Maps a marks file.
    pub(crate) fn of(file: impl AsFd) -> Result<Self, HostError> {
        Ok(Self { map: Map::of(file, MARKS_BYTES, true)? })
    }

    /// Sets the mark of the user whose bit that is.
    pub(crate) fn set(&self, gref: GrantRef, bit: u32) {
        if let Some(word) = self.map.word(gref.0 as usize) {
            word.fetch_or(bit, SeqCst);
        }
    }

    /// Takes it away.
    pub(crate) fn clear(&self, gref: GrantRef, bit: u32) {
        if let Some(word) = self.map.word(gref.0 as usize) {
            word.fetch_and(!bit, SeqCst);
        }
    }

    /// Takes all marks of one user away. Only where `file` (the one that is mapped) has data can
    /// there be any; holes are not touched, so that they stay holes.
    pub(crate) fn sweep(&self, file: impl AsFd, bit: u32) {
        let mut at = 0;
        while let Ok(start) = lseek(&file, at, Whence::SeekData)
            && let Ok(end) = lseek(&file, start, Whence::SeekHole)
        {
            let words = (start.div_euclid(4) as usize)..(end.div_euclid(4) as usize);
            for word in words.filter_map(|index| self.map.word(index)) {
                if word.load(Relaxed) & bit != 0 {
                    word.fetch_and(!bit, SeqCst);
                }
            }
            at = end;
        }
    }

    /// Whether anybody uses the entry.
    pub(crate) fn any(&self, gref: GrantRef) -> bool {
        self.map.word(gref.0 as usize).is_some_and(|word| word.load(SeqCst) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_laid_out_as_grant_entry_v1() {
        let domain = DomId::new(0x1234).unwrap();
        let entry = Entry::offer(domain, 0xAABB_CCDD, Access::ReadWrite);
        assert_eq!(entry.0.to_le_bytes(), [1, 0, 0x34, 0x12, 0xDD, 0xCC, 0xBB, 0xAA]);
        let entry = Entry::offer(domain, 0, Access::ReadOnly);
        assert_eq!(entry.0.to_le_bytes(), [5, 0, 0x34, 0x12, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_not_permitted_is_the_general_error() {
        let (one, two) = (DomId::new(1).unwrap(), DomId::new(2).unwrap());
        let refused = Err(GrantStatus::GENERAL_ERROR);
        let write = Entry::offer(one, 9, Access::ReadWrite);
        assert_eq!(write.permits(one, Access::ReadWrite), Ok(9));
        assert_eq!(write.permits(one, Access::ReadOnly), Ok(9));
        assert_eq!(write.permits(two, Access::ReadOnly), refused);
        let read = Entry::offer(one, 9, Access::ReadOnly);
        assert_eq!(read.permits(one, Access::ReadOnly), Ok(9));
        assert_eq!(read.permits(one, Access::ReadWrite), refused);
        assert_eq!(Entry(0).permits(DomId::ZERO, Access::ReadOnly), refused);
        // `GTF_accept_transfer` and `GTF_transitive` offer no access.
        assert_eq!(Entry(2 | 1 << 16).permits(one, Access::ReadOnly), refused);
        assert_eq!(Entry(3 | 1 << 16).permits(one, Access::ReadOnly), refused);
    }

    #[test]
    fn entries_and_status_words_do_not_overlap() {
        let file = super::super::map::sealed_file("test", TABLE_BYTES as u64).unwrap();
        let table = Table::of(&file, true).unwrap();
        let last = GrantRef(ENTRIES - 1);
        let entry = Entry::offer(DomId::ZERO, u32::MAX, Access::ReadWrite);
        table.write(last, Some(entry));
        assert!(!table.alive());
        table.set_alive(true);
        table.set_target(77);
        assert_eq!((table.read(last), table.target(), table.alive()), (Some(entry), 77, true));
        assert_eq!(table.read(GrantRef(ENTRIES)), None);
    }
}
