//! What the queues of a device share of its medium.
//!
//! **When a write or a flush may be called done.** A write is done when the kernel has taken it. A
//! flush is done when `fdatasync` has succeeded: on a file opened past the page cache or not, that
//! puts the data and what is needed to find it on stable storage, the drive's own cache included.
//!
//! The kernel reports that it could not write something back to *each open file description once*,
//! and then forgets the pages that it could not write. Two rules follow, so that no flush is ever
//! answered as done after data was lost:
//!
//! - every queue has an open file description of its own, made when the image was opened and kept
//!   until it is closed, so that one queue's flush cannot use up the report that another's was to get;
//! - a failed flush is final: after it every flush, of every queue, fails with the same error until
//!   the image is opened anew. A later `fdatasync` that succeeds says nothing about what was lost.
//!
//! `EINTR` and `EAGAIN` are no such failures: they say that the attempt was given up.

use std::fs::File;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::image::{Geometry, Kind, Transfers};

/// A medium as the queues see it. Shared by all of a device's threads.
#[derive(Debug)]
pub struct Media {
    kind: Kind,
    geometry: Geometry,
    /// The size in `geometry` is what it was when opened; this is what it is.
    size: AtomicU64,
    transfers: Transfers,
    why_buffered: Option<String>,
    /// One open file description for each queue.
    files: Vec<File>,
    /// The first real error of a flush, or 0.
    sync_failure: AtomicI32,
}

impl Media {
    pub(super) fn new(
        kind: Kind,
        geometry: Geometry,
        transfers: Transfers,
        why_buffered: Option<String>,
        files: Vec<File>,
    ) -> Self {
        let (size, sync_failure) = (AtomicU64::new(geometry.size), AtomicI32::new(0));
        Self { kind, geometry, size, transfers, why_buffered, files, sync_failure }
    }

    /// What kind of medium it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its size now and its other measures, which do not change.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { size: self.size.load(Ordering::Acquire), ..self.geometry }
    }

    /// How its bytes are moved.
    #[must_use]
    pub const fn transfers(&self) -> Transfers {
        self.transfers
    }

    /// Where transfers go through the page cache although that was not asked for: why.
    #[must_use]
    pub fn why_buffered(&self) -> Option<&str> {
        self.why_buffered.as_deref()
    }

    /// The open file description of queue `queue`; `None` beyond the number it was opened for.
    #[must_use]
    pub fn file(&self, queue: u16) -> Option<&File> {
        self.files.get(usize::from(queue))
    }

    /// Why flushes cannot succeed any more, a positive `errno`.
    #[must_use]
    pub fn sync_failure(&self) -> Option<i32> {
        let errno = self.sync_failure.load(Ordering::Acquire);
        (errno != 0).then_some(errno)
    }

    /// Takes in how a flush ended, and says what to answer: the first failure stays.
    ///
    /// # Errors
    ///
    /// The positive `errno` with which this or an earlier flush failed.
    pub fn synced(&self, result: Result<u64, i32>) -> Result<u64, i32> {
        match result {
            // Nothing is known of the data by these; the flush is not done, that is all.
            Err(errno @ (libc::EINTR | libc::EAGAIN)) => Err(errno),
            Err(errno) => {
                let first = self.sync_failure.compare_exchange(
                    0,
                    errno,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                Err(first.err().unwrap_or(errno))
            }
            Ok(done) => self.sync_failure().map_or(Ok(done), Err),
        }
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }
}
