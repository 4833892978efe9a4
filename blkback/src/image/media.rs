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
//! - a failed flush is final for the device, whatever a later `fdatasync` says: [`Standing`].
//!
//! [`Standing`]: crate::durability::Standing

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

impl Media {
    pub(super) fn new(
        kind: Kind,
        geometry: Geometry,
        transfers: Transfers,
        why_buffered: Option<String>,
        files: Vec<File>,
    ) -> Self {
        let size = AtomicU64::new(geometry.size);
        Self { kind, geometry, size, transfers, why_buffered, files }
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

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }
}
