//! What a guest told us beside its packets, for the process that comes after this one.
//!
//! A frontend says once how packets are to be hashed and spread, which grants stay mapped, and which multicast
//! packets it wants; nobody asks it again. So all of that stands in a file of the run-time folder, which outlives
//! this process. It is not kept in the store, since each change of a guest's would be work for the store of all
//! guests; and nothing of it is read from the guest a second time.
//!
//! Requests of the control ring are answered one by one: first one is done, then the file says what came of it and
//! what the answer is, then the answer is written over the request and published. Whoever is killed before the file
//! says so has done nothing that is left, and the request is done again; after that, the next process
//! [answers](Memo::recall) as the file says, without looking at what may lie over the request by now. A change of
//! the multicast list comes in a packet, and is in the file before that packet's answer is noted on the ring.
//!
//! The file belongs to one connection: it holds a number that also stands on the first ring, which is zero
//! there in every new ring. Before: `connect`. After: `control`, `filter`. Trust: the file is ours, in a folder that
//! is ours; what it says was the guest's word once, and is checked as that was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hypervisor::daemon::mark;
use hypervisor::memory::{Memory, Using};
use hypervisor::xenbus::Seat;
use hypervisor::{DomId, GrantRef, HostError};
use ring::RingIndex;
use ring::layout::MARK;
use ring::packet::steering::Settings;
use ring::wire::netif::control::{Algorithm, Gref, HashTypes, Response, Status};
use serde::{Deserialize, Serialize};

use crate::filter::Mac;
use crate::queue::Serving;

/// The form of the file. Another one is not read.
const VERSION: u32 = 1;

/// What stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// The backend's directory.
    device: String,
    mark: u64,
    algorithm: u32,
    types: u32,
    key: Vec<u8>,
    mapping: Vec<u16>,
    /// Of each queue, grants and their flags.
    kept: Vec<Vec<(u32, u16)>>,
    /// The multicast list; nothing where it is not known.
    groups: Option<Vec<Mac>>,
    /// The control request that was done last, and its answer.
    answered: Option<(u32, [u8; Response::SIZE])>,
}

/// The file of one connection.
#[derive(Debug)]
pub struct Memo {
    path: PathBuf,
    saved: Mutex<Saved>,
    /// What the process before this one did and may not have published.
    owed: Mutex<Option<(u32, Response)>>,
}

impl Memo {
    /// Where that of the device at `seat` is, in `folder`.
    #[must_use]
    pub fn path(folder: &Path, seat: &Seat) -> PathBuf {
        let place = seat.own.split_once("/backend/").map_or(seat.own.as_str(), |(_, place)| place);
        folder.join(format!("netback-{}.memo", place.replace('/', "-")))
    }

    /// A new one at `path`, for the connection at `seat` whose first ring is `ring`. What it listed of
    /// multicast packets is `known` to be nothing, or not known.
    ///
    /// # Errors
    ///
    /// There is no room for it.
    pub fn begin<M: Memory>(
        path: &Path,
        seat: &Seat,
        ring: &M,
        known: bool,
    ) -> Result<Self, HostError> {
        let failed = |error: &io::Error| {
            HostError::from_io(format!("keep what the guest says in {}", path.display()), error)
        };
        let mark = mark::random().map_err(|error| failed(&error))?;
        let groups = known.then(Vec::new);
        let saved =
            Saved { version: VERSION, device: seat.own.clone(), mark, groups, ..Saved::default() };
        write(path, &saved).map_err(|error| failed(&error))?;
        // Only now: whoever is killed in between leaves a file that is nobody's.
        let _ = ring.write_at(MARK, &mark.to_le_bytes());
        Ok(Self { path: path.to_owned(), saved: Mutex::new(saved), owed: Mutex::new(None) })
    }

    /// That of the connection at `seat` whose first ring is `ring`, if one was kept at `path`.
    ///
    /// # Errors
    ///
    /// Why what is there is not that.
    pub fn find<M: Memory>(path: &Path, seat: &Seat, ring: &M) -> Result<Option<Self>, String> {
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let saved: Saved = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        if saved.version != VERSION {
            let version = saved.version;
            return Err(failed(&format!("is of version {version}, and this reads {VERSION}")));
        }
        let mut found = [0; 8];
        let _ = ring.read_at(MARK, &mut found);
        if saved.device != seat.own || found != saved.mark.to_le_bytes() {
            return Err(failed(&"is of another connection"));
        }
        let owed = saved.answered.map(|(index, answer)| (index, Response::decode(&answer)));
        let (saved, owed) = (Mutex::new(saved), Mutex::new(owed));
        Ok(Some(Self { path: path.to_owned(), saved, owed }))
    }

    /// Sets in `serving`, of a connection to `peer`, what the guest had set before. Says whether its multicast list is
    /// known.
    pub fn restore<U: Using>(&self, domain: &U, peer: DomId, serving: &Serving) -> bool {
        let saved = self.saved().clone();
        let settings = Settings {
            algorithm: Algorithm(saved.algorithm),
            types: HashTypes(saved.types),
            key: &saved.key,
            mapping: &saved.mapping,
        };
        if !serving.steer(|steering| steering.restore(&settings)) {
            tracing::warn!("{}: it cannot have set how packets are spread", self.path.display());
        }
        for (queue, grants) in (0..).zip(&saved.kept) {
            let named = |(gref, flags): &(u32, u16)| Gref {
                gref: GrantRef(*gref),
                flags: *flags,
                status: 0,
            };
            let list: Vec<Gref> = grants.iter().map(named).collect();
            let Some(kept) = serving.kept(queue).filter(|_| !list.is_empty()) else { continue };
            if kept.add(domain, peer, &list) != Status::SUCCESS {
                // They are reached like any others.
                tracing::warn!(queue, "grants stay no longer mapped: they cannot be mapped again");
            }
        }
        match saved.groups {
            Some(listed) => {
                serving.groups.list(listed);
                true
            }
            None => false,
        }
    }

    /// The answer to the control request at `index`, where the process before this one has done that.
    #[must_use]
    pub fn recall(&self, index: RingIndex) -> Option<Response> {
        // Asked of the first one that is taken, and of no other.
        let owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner).take();
        owed.filter(|(at, _)| *at == index.0).map(|(_, answer)| answer)
    }

    /// The control request at `index` was done, and is about to be answered like this.
    pub fn answered(&self, index: RingIndex, answer: &Response, serving: &Serving) {
        let mut saved = self.saved();
        serving.steer(|steering| {
            let Settings { algorithm, types, key, mapping } = steering.settings();
            (saved.algorithm, saved.types) = (algorithm.0, types.0);
            (saved.key, saved.mapping) = (key.to_vec(), mapping.to_vec());
        });
        let kept = (0..serving.queues()).filter_map(|queue| serving.kept(queue));
        let plain = |gref: Gref| (gref.gref.0, gref.flags);
        saved.kept = kept.map(|kept| kept.list().into_iter().map(plain).collect()).collect();
        saved.answered = Some((index.0, answer.encode()));
        self.write(&saved);
    }

    /// The multicast list is this now.
    pub(crate) fn listed(&self, groups: &[Mac]) {
        let mut saved = self.saved();
        // Of a list that is not known, a part is worth nothing.
        if let Some(known) = &mut saved.groups {
            *known = groups.to_vec();
            self.write(&saved);
        }
    }

    fn saved(&self) -> MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, saved: &Saved) {
        if let Err(error) = write(&self.path, saved) {
            // What is not true any more is worse than nothing.
            let _ = fs::remove_file(&self.path);
            let path = self.path.display();
            tracing::warn!("{path}: what the guest says does not outlive this process: {error}");
        }
    }
}

/// Puts a whole file in the place of the former one.
fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let aside = path.with_extension("new");
    fs::write(&aside, serde_json::to_vec(saved)?)?;
    fs::rename(&aside, path)
}
