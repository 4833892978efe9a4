//! The files of one device's journals: `PROGRAM-DEVICE-QUEUE.journal` in the run-time folder.
//!
//! A journal is made aside and renamed, so that under its name there is always a whole one; and the
//! ring is marked as its own after that. Whoever is killed between the two leaves a journal that is nobody's.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use hypervisor::HostError;
use nix::fcntl::{FallocateFlags, fallocate};
use ring::shared::Words;

use super::{Identity, Journal, Map, Owed, mark, words};

/// One device's journals.
#[derive(Clone, Debug)]
pub struct Journals {
    folder: PathBuf,
    device: String,
}

/// A queue's journal, and what the process before this one owes by it.
#[derive(Debug)]
pub struct Kept {
    /// To be gone on with.
    pub journal: Journal<Map>,
    /// What is owed.
    pub owed: Owed,
    /// Whether it was there before.
    pub resumed: bool,
}

impl Journals {
    /// In `folder`, of the device called `device`, which is as good as a file's name.
    #[must_use]
    pub fn new(folder: &Path, device: &str) -> Self {
        Self { folder: folder.to_owned(), device: device.to_owned() }
    }

    /// In the same folder, those of another device.
    #[must_use]
    pub fn named(&self, device: &str) -> Self {
        Self::new(&self.folder, device)
    }

    /// Queue `queue`'s.
    #[must_use]
    pub fn path(&self, queue: u16) -> PathBuf {
        self.folder.join(format!("blkback-{}-{queue}.journal", self.device))
    }

    /// What is owed on `ring` by the journal that there is of it, if there is one.
    ///
    /// # Errors
    ///
    /// There is one and it is not this ring's, or the two do not fit each other; or it cannot be
    /// read. In words, as there is nothing to be done but to say so.
    pub fn look<R: Words>(&self, identity: &Identity, ring: &R) -> Result<Option<Owed>, String> {
        let Some(map) = self.open(identity)? else { return Ok(None) };
        Journal::look(&map, identity, ring).map(Some).map_err(|why| self.refused(identity, &why))
    }

    /// Goes on with the journal of `ring`.
    ///
    /// # Errors
    ///
    /// As for [`look`](Self::look).
    pub fn resume<R: Words>(&self, identity: &Identity, ring: &R) -> Result<Option<Kept>, String> {
        let Some(map) = self.open(identity)? else { return Ok(None) };
        let owed = Journal::look(&map, identity, ring);
        let owed = owed.map_err(|why| self.refused(identity, &why))?;
        let journal = Journal::resume(map, identity, &owed);
        Ok(Some(Kept { journal, owed, resumed: true }))
    }

    /// Begins a journal of `ring`, of which everything taken was answered, in place of any other of its name.
    ///
    /// # Errors
    ///
    /// The host has no room for it.
    pub fn begin<R: Words>(&self, identity: &Identity, ring: &R) -> Result<Kept, HostError> {
        let path = self.path(identity.queue);
        let aside = path.with_extension("new");
        let failed = |doing: &str, error: &io::Error| {
            HostError::from_io(format!("{doing} the journal {}", path.display()), error)
        };
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true).truncate(true).mode(0o600);
        how.custom_flags(libc::O_NOFOLLOW);
        let file = how.open(&aside).map_err(|error| failed("make", &error))?;
        let bytes = i64::try_from(words(identity.slots).saturating_mul(8)).unwrap_or(i64::MAX);
        fallocate(&file, FallocateFlags::empty(), 0, bytes)
            .map_err(|errno| failed("find room for", &errno.into()))?;
        let map = Map::of(&file, words(identity.slots))?;
        let own = hypervisor::daemon::mark::random()
            .map_err(|error| failed("make a mark for", &error))?;
        let (journal, owed) = Journal::begin(map, identity, ring, own);
        fs::rename(&aside, &path).map_err(|error| failed("name", &error))?;
        mark(ring, own);
        Ok(Kept { journal, owed, resumed: false })
    }

    /// Removes all of them: the device is no more.
    pub fn remove(&self) {
        for queue in 0..u16::try_from(crate::connect::xenbus::MAX_QUEUES).unwrap_or(u16::MAX) {
            // Most were never there.
            let _ = fs::remove_file(self.path(queue));
        }
    }

    fn open(&self, identity: &Identity) -> Result<Option<Map>, String> {
        let path = self.path(identity.queue);
        let mut how = OpenOptions::new();
        how.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        let failed = |error: &dyn std::fmt::Display| format!("journal {}: {error}", path.display());
        let file = match how.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let about = file.metadata().map_err(|error| failed(&error))?;
        let wanted = words(identity.slots);
        if !about.is_file() || about.len() != (wanted as u64).saturating_mul(8) {
            let have = usize::try_from(about.len() / 8).unwrap_or(usize::MAX);
            let slots = identity.slots;
            return Err(failed(&super::Refused::Size { have, wanted, slots }));
        }
        Map::of(&file, wanted).map(Some).map_err(|error| failed(&error))
    }

    fn refused(&self, identity: &Identity, why: &super::Refused) -> String {
        format!("journal {}: {why}", self.path(identity.queue).display())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use hypervisor::memory::Granting as _;
    use hypervisor::testing::Machine;
    use hypervisor::{DomId, EventPort, GrantRef};
    use ring::Front;
    use ring::wire::blkif::{Blkif, Native, Request};

    use super::*;
    use crate::connect::Layout;
    use crate::journal::Journaled;
    use crate::receive::{Requests as _, XenRing};

    fn identity() -> Identity {
        Identity {
            device: "/local/domain/0/backend/vbd3/5/51712".to_owned(),
            peer: DomId::new(5).unwrap(),
            queue: 1,
            layout: Layout::X86_64,
            slots: 32,
            ring: vec![GrantRef(8)],
            port: EventPort(3),
        }
    }

    #[test]
    fn a_journal_outlives_who_kept_it_and_is_nobody_elses() {
        let (folder, machine) = (tempfile::tempdir().unwrap(), Machine::new());
        let journals = Journals::new(folder.path(), "vbd3-5-51712");
        let domain = machine.domain("guest");
        let ring = || std::sync::Arc::new(domain.allocate(1, domain.id()).unwrap());
        let memory = ring();
        let mut front = Front::<Blkif<Native>, _>::init(memory.clone()).unwrap();
        assert_eq!(journals.look(&identity(), &memory), Ok(None), "there is none");
        let kept = journals.begin(&identity(), &memory).unwrap();
        let path = journals.path(1);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let peer = identity().peer;
        let (ring_end, slots) = XenRing::<Native, _>::resume(
            memory.clone(),
            peer,
            kept.owed.taken,
            kept.owed.published,
        )
        .unwrap();
        let mut requests = Journaled::new(ring_end, kept.journal, kept.owed.requests, slots);
        for id in 1..=3 {
            front.push(&Request::flush(id)).unwrap();
        }
        let _ = front.publish();
        for _ in 0..2 {
            let raw = requests.take().unwrap().unwrap();
            requests.abandon(raw.slot);
        }
        drop(requests);

        let owed = journals.look(&identity(), &memory).unwrap().unwrap();
        let ids: Vec<u64> = owed.requests.iter().map(|(request, _)| request.id).collect();
        assert_eq!((owed.taken.0, ids), (2, vec![1, 2]));
        type Change = fn(&mut Identity);
        let others: [(&str, Change); 6] = [
            ("domain", |i| i.peer = DomId::new(6).unwrap()),
            ("layout", |i| i.layout = Layout::X86_32),
            ("event channel", |i| i.port = EventPort(4)),
            ("ring", |i| i.ring = vec![GrantRef(9)]),
            ("ring", |i| i.ring = vec![GrantRef(8), GrantRef(0)]),
            ("device", |i| i.device.push('0')),
        ];
        for (part, change) in others {
            let mut other = identity();
            change(&mut other);
            let why = journals.look(&other, &memory).unwrap_err();
            assert!(why.contains(&format!("kept for another {part}")), "{why}");
        }
        // Another ring in its place, by the same names, has no mark.
        let other = ring();
        let _front = Front::<Blkif<Native>, _>::init(other.clone()).unwrap();
        let why = journals.look(&identity(), &other).unwrap_err();
        assert!(why.contains("the ring carries mark 0x0"), "{why}");
        let mut large = identity();
        large.slots = 64;
        let why = journals.look(&large, &memory).unwrap_err();
        assert!(why.contains("a ring of 64 slots needs 1536"), "{why}");
        journals.remove();
        assert_eq!(journals.look(&identity(), &memory), Ok(None));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_journal_is_said_to_be_none() {
        let (folder, machine) = (tempfile::tempdir().unwrap(), Machine::new());
        let journals = Journals::new(folder.path(), "device");
        let domain = machine.domain("guest");
        let memory = std::sync::Arc::new(domain.allocate(1, domain.id()).unwrap());
        let _front = Front::<Blkif<Native>, _>::init(memory.clone()).unwrap();
        drop(journals.begin(&identity(), &memory).unwrap());
        let whole = fs::read(journals.path(1)).unwrap();
        for (at, word) in
            [(0, "begins with"), (8, "begins with"), (30, "damaged"), (264, "damaged")]
        {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(journals.path(1), bytes).unwrap();
            let why = journals.look(&identity(), &memory).unwrap_err();
            assert!(why.contains(word) && why.contains("device-1.journal"), "{why}");
        }
        fs::write(journals.path(1), &whole[8..]).unwrap();
        let why = journals.look(&identity(), &memory).unwrap_err();
        assert!(why.contains("has 1023 words"), "{why}");
    }
}
